"""Augmentation: its effect, its bounds, and its repetition by a seed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.training.augment import (
    NO_AUGMENTATION,
    STAINS_TO_RGB,
    Augmentation,
    jitter_stains,
    shift_tone,
    turn,
    warp,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetries(patch: torch.Tensor) -> list[torch.Tensor]:
    ways = [torch.rot90(patch, k, dims=(1, 2)) for k in range(4)]
    return ways + [way.flip(2) for way in ways]


def seen_ways(**switches: bool) -> set[int]:
    patch = torch.arange(3 * 4 * 4, dtype=torch.float32).reshape(3, 4, 4)
    turned = turn(patch.repeat(200, 1, 1, 1), generator(), **switches)
    return {[torch.equal(one, way) for way in symmetries(patch)].index(True) for one in turned}


def test_flips_and_turns_give_all_eight_symmetries_and_nothing_else() -> None:
    assert seen_ways() == set(range(8))


def test_turns_alone_never_mirror() -> None:
    assert seen_ways(flips=False) == {0, 1, 2, 3}


def test_flips_alone_never_turn() -> None:
    assert seen_ways(turns=False) == {0, 4}


@given(
    st.sampled_from(["flips", "turns", "affine", "brightness", "contrast", "hed"]),
    st.integers(0, 99),
)
def test_each_change_alone_does_something_and_stays_within_zero_to_one(
    name: str, seed: int
) -> None:
    x = torch.rand(8, 3, 6, 6, generator=generator(seed))
    only = Augmentation(
        **{"flips": False, "turns": False, "affine": 0, "brightness": 0, "contrast": 0, "hed": 0}  # type: ignore[arg-type]
        | {name: True if name in ("flips", "turns") else 0.3}
    )
    changed = only.apply(x, generator(seed))
    assert not torch.equal(changed, x)
    assert changed.shape == x.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1


def test_nothing_switched_on_changes_nothing_and_draws_nothing() -> None:
    x = torch.rand(2, 3, 5, 5)
    draws = generator()
    before = draws.get_state()
    assert NO_AUGMENTATION.apply(x, draws) is x
    assert torch.equal(draws.get_state(), before)


def test_the_same_seed_gives_the_same_changes() -> None:
    x = torch.rand(10, 3, 5, 5, generator=generator(1))
    everything = Augmentation(affine=1, hed=0.1)
    assert torch.equal(everything.apply(x, generator(7)), everything.apply(x, generator(7)))
    assert not torch.equal(everything.apply(x, generator(7)), everything.apply(x, generator(8)))


def test_brightness_moves_a_grey_patch_within_its_bound() -> None:
    shifted = shift_tone(
        torch.full((1000, 3, 2, 2), 0.5), brightness=0.1, contrast=0.5, generator=generator()
    )
    assert 0.4 <= float(shifted.min()) < 0.41  # contrast has nothing to stretch
    assert 0.59 < float(shifted.max()) <= 0.6


def test_contrast_stretches_about_the_mean() -> None:
    x = torch.tensor([0.4, 0.6]).reshape(1, 1, 1, 2).expand(500, 3, 1, 2)
    stretched = shift_tone(x, brightness=0, contrast=0.5, generator=generator())
    assert torch.allclose(stretched.mean(dim=(1, 2, 3)), torch.tensor(0.5), atol=1e-6)
    spread = stretched[:, 0, 0, 1] - stretched[:, 0, 0, 0]
    assert 0.1 <= float(spread.min()) < 0.11
    assert 0.29 < float(spread.max()) <= 0.3


def test_stain_jitter_of_nothing_gives_the_patch_back() -> None:
    x = torch.rand(4, 3, 5, 5, generator=generator()) * 0.9 + 0.05
    assert torch.allclose(jitter_stains(x, 0.0, generator()), x, atol=1e-5)


def test_stain_jitter_moves_along_the_stains() -> None:
    """A pixel of pure haematoxylin at density 0.5 stays haematoxylin, stronger or weaker."""
    stains = np.array(STAINS_TO_RGB)
    x = (
        torch.tensor(np.exp(-0.5 * stains[0]), dtype=torch.float32)
        .reshape(1, 3, 1, 1)
        .repeat(300, 1, 1, 1)
    )
    jittered = jitter_stains(x, 0.2, generator())
    density = -np.log(jittered[:, :, 0, 0].numpy()) @ np.linalg.inv(stains)
    assert 0.5 * 0.8 - 0.2 - 1e-3 <= density[:, 0].min() < 0.25
    assert 0.75 < density[:, 0].max() <= 0.5 * 1.2 + 0.2 + 1e-3


def test_warping_keeps_a_flat_patch_flat() -> None:
    warped = warp(torch.full((20, 3, 9, 9), 0.3), 1.0, generator())
    assert torch.allclose(warped, torch.tensor(0.3), atol=1e-6)


def test_warping_moves_a_centred_dot_by_less_than_the_bounds() -> None:
    """5 % of 41 px is about 2 px; turning and scaling about the centre leave it where it is."""
    x = torch.zeros(100, 1, 41, 41)
    x[:, :, 20, 20] = 1.0
    warped = warp(x, 1.0, generator())[:, 0].flatten(1).argmax(dim=1)
    rows, cols = warped // 41 - 20, warped % 41 - 20
    assert int(rows.abs().max()) in (2, 3)
    assert int(cols.abs().max()) in (2, 3)


@pytest.mark.parametrize(
    "wrong",
    [{"hed": -0.1}, {"affine": 2.0}, {"brightness": float("nan")}, {"contrast": float("inf")}],
)
def test_impossible_strengths_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        Augmentation(**wrong)  # type: ignore[arg-type]
