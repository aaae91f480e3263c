"""What `wsi tile` and `wsi infer` do with the detectors of tissue, and say of what they saw."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.builders import make_checkpoint, write_model, write_slide
from tests.commands import run
from wsi_pipeline.store.patches import PatchStore

GLASS, EOSIN = (243, 242, 244), (214, 150, 190)
SIDE = 600
SECTION = np.s_[150:450, 150:450]
"""Of 12 × 12 patches of 50 px it has 6 × 6."""


def section(
    glass: tuple[int, ...] = GLASS, tissue: tuple[int, ...] = EOSIN, grain: float = 5
) -> NDArray[np.float64]:
    """A square section on glass, 1 µm per pixel."""
    rng = np.random.default_rng(7)
    picture = np.array(glass) + rng.standard_normal((SIDE, SIDE, 1))
    picture[SECTION] = np.array(tissue) + grain * rng.standard_normal((300, 300, 1))
    return picture


def write(path: Path, picture: NDArray[np.float64], mpp: float = 1.0) -> Path:
    """The slide's file."""
    return write_slide(path, np.clip(picture, 0, 255).astype(np.uint8), mpp=mpp)


def tile(slide: Path, out: Path, *options: object) -> tuple[PatchStore, str]:
    """The slide's store, and what was said."""
    done = run("tile", slide, "-o", out, "--workers", 0, "--mpp", 1, *options)
    assert done.exit_code == 0, done.output
    return PatchStore(next(out.glob("*.patches.zarr"))), done.output + done.stderr


def with_pen(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """A blue stroke along the upper edge."""
    picture[:40, :300] = (30, 60, 160)
    return picture


def with_brown(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """A third of the section in strong brown."""
    picture[150:250, 150:450] = (120, 75, 40)
    return picture


def with_black(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """A strip that was not scanned."""
    picture[:, :100] = np.array((4, 3, 6)) + np.random.default_rng(1).normal(0, 2, (SIDE, 100, 3))
    return picture


def with_frame(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """A dark border all round."""
    for part in (np.s_[:40], np.s_[-40:], np.s_[:, :40], np.s_[:, -40:]):
        noise = np.random.default_rng(1).normal(0, 4, picture[part].shape)
        picture[part] = np.array((38, 34, 31)) + noise
    return picture


PALE = (222, 225, 232)
SLIDES = {
    "yellow glass": lambda: section((240, 232, 214)),
    "blue glass": lambda: section((214, 224, 240)),
    "dim glass": lambda: section((223, 215, 213)),
    "pale": lambda: section(tissue=PALE, grain=2),
    "pale beside a pen": lambda: with_pen(section(tissue=PALE, grain=2)),
    "pale beside brown": lambda: with_brown(section(tissue=PALE, grain=2)),
    "partly black": lambda: with_black(section()),
    "dark frame": lambda: with_frame(section()),
    "silver": lambda: section(tissue=(120, 118, 116), grain=15),
}


@pytest.mark.parametrize("name", SLIDES)
def test_a_section_has_its_patches_whatever_else_is_on_the_slide(name: str, tmp_path: Path) -> None:
    store, _ = tile(write(tmp_path / "s.tiff", SLIDES[name]()), tmp_path / "out")
    inside = {(row, col) for row in range(3, 9) for col in range(3, 9)}
    found = set(map(tuple, store.positions.tolist()))
    assert inside <= found
    assert len(found) <= 45


def test_the_recipe_names_the_detector_and_its_own_parameters(tmp_path: Path) -> None:
    slide = write(tmp_path / "s.tiff", section())
    options = ("--closing", 40, "--min-width", 24, "--min-density", 0.1)
    local = tile(slide, tmp_path / "a", *options)[0].attributes["tissue"]
    otsu = tile(slide, tmp_path / "b", "--tissue", "otsu")[0].attributes["tissue"]
    assert (local["detector"], local["closing_radius_um"], local["min_width_um"]) == (
        "local",
        40,
        24,
    )
    assert local["sure_density"] == 0.1
    assert "max_saturation" not in local
    assert (otsu["detector"], otsu["max_saturation"]) == ("otsu", 0.08)
    assert "sure_density" not in otsu


def test_another_detector_makes_another_store(tmp_path: Path) -> None:
    slide = write(tmp_path / "s.tiff", section())
    tile(slide, tmp_path / "out")
    options = ("--workers", 0, "--mpp", 1, "--tissue", "otsu")
    assert run("tile", slide, "-o", tmp_path / "out", *options).exit_code != 0
    assert run("tile", slide, "-o", tmp_path / "out", *options, "--force").exit_code == 0


@pytest.mark.parametrize("flag", ["fold", "bubble"])
def test_flags_that_otsu_does_not_look_for_cannot_be_dropped(flag: str, tmp_path: Path) -> None:
    slide = write(tmp_path / "s.tiff", section())
    done = run("tile", slide, "-o", tmp_path / "out", "--tissue", "otsu", "--drop", flag)
    assert done.exit_code == 1
    assert f"--drop {flag} needs --tissue local" in done.output + done.stderr


@pytest.mark.parametrize("option", ["--max-fold", "--max-bubble", "--max-pen"])
def test_a_share_lies_between_0_and_1(option: str, tmp_path: Path) -> None:
    slide = write(tmp_path / "s.tiff", section())
    assert run("tile", slide, "-o", tmp_path / "out", option, 1.5).exit_code == 2


def test_a_dark_background_is_said_and_recorded(tmp_path: Path) -> None:
    picture = np.array((5, 6, 9)) + np.random.default_rng(1).standard_normal((SIDE, SIDE, 3))
    picture[SECTION] += (5, 20, 90)
    slide = write(tmp_path / "s.tiff", picture)
    store, said = tile(slide, tmp_path / "out")
    assert "dark background (fluorescence?): no H&E can be read from it" in said
    assert len(store.positions) == 36
    assert store.table.share_areas()["dark"] == pytest.approx(0.75, abs=0.05)


def test_a_dry_run_says_so_too(tmp_path: Path) -> None:
    picture = np.array((5, 6, 9)) + np.random.default_rng(1).standard_normal((SIDE, SIDE, 3))
    picture[SECTION] += (5, 20, 90)
    slide, model = (
        write(tmp_path / "s.tiff", picture),
        write_model(tmp_path / "m.safetensors", make_checkpoint(mpp=1.0)),
    )
    line = ("infer", "--slides", slide, "--model", model, "--results-dir", tmp_path / "results")
    done = run(*line, "--dry-run", "--engine", "torch", "--device", "cpu")
    assert "dark background (fluorescence?)" in done.output
    assert not (tmp_path / "results").exists()


def test_a_slide_without_tissue_says_what_is_there_instead(tmp_path: Path) -> None:
    picture = section(tissue=GLASS, grain=1)
    picture[SECTION] -= 14
    store, said = tile(write(tmp_path / "s.tiff", picture), tmp_path / "out")
    assert store.table.patches == 0
    share = store.table.share_areas()["uncertain"]
    assert f"the picture is {share:.0%} uncertain; see its mask.png" in said


def test_ink_over_tissue_is_said_and_left_out_only_when_asked(tmp_path: Path) -> None:
    picture = section()
    picture[:, 250:350] *= np.array((30, 60, 160)) / 243
    slide = write(tmp_path / "s.tiff", picture, mpp=4.0)  # strokes are broader than 0.1 mm
    store, said = tile(slide, tmp_path / "a", "--mpp", 4)
    assert store.table.patches == 36
    assert "12 flagged pen" in said
    assert tile(slide, tmp_path / "b", "--drop", "pen", "--mpp", 4)[0].table.patches == 24


def test_a_fold_is_said_and_left_out_only_when_asked(tmp_path: Path) -> None:
    picture = section(grain=20)
    picture[160:440, 285:315] = 243 * (picture[160:440, 285:315] / 243) ** 2.5
    slide = write(tmp_path / "s.tiff", picture)
    store, said = tile(slide, tmp_path / "a")
    assert store.table.patches == 36
    flagged = store.table.count_flags()["fold"]
    assert 8 <= flagged <= 12
    assert f"{flagged} flagged fold" in said
    assert tile(slide, tmp_path / "b", "--drop", "fold")[0].table.patches == 36 - flagged


def test_the_preview_has_a_colour_for_what_is_no_tissue(tmp_path: Path) -> None:
    tile(write(tmp_path / "s.tiff", with_frame(with_pen(section()))), tmp_path / "out")
    shown = np.asarray(Image.open(tmp_path / "out" / "s.mask.png")).astype(int)
    store = PatchStore(tmp_path / "out" / "s.patches.zarr")
    assert store.table.areas is not None
    step = store.table.areas.shape[0] / shown.shape[0]
    assert step == 1
    plain = 255 - (255 - store.table.thumbnail.pixels.astype(float)) * 0.45
    colored = np.asarray((np.abs(shown - plain) > 20).any(-1))
    assert colored[np.isin(store.table.areas, (2, 3, 5))].mean() > 0.9
    assert colored[store.table.areas == 0].mean() < 0.05


def test_infer_takes_the_detector_too(tmp_path: Path) -> None:
    slide = write(tmp_path / "s.tiff", section((223, 205, 180)))
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(mpp=1.0))
    counts = {}
    for detector in ("local", "otsu"):
        out = tmp_path / detector
        line = ("infer", "--slides", slide, "--model", model, "--results-dir", out)
        options = ("--workers", 0, "--tissue", detector, "--engine", "torch")
        done = run(*line, *options, "--device", "cpu", "--outputs", "summary")
        assert done.exit_code == 0, done.output
        counts[detector] = done.output + done.stderr
    assert counts["local"] != counts["otsu"]
