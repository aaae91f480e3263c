"""Area averaging against the plainest possible implementation, and against how a read is split."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import paint, paint_noise, write_png
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.base import Level, choose_level
from wsi_pipeline.slides.scaling import ScaledView

WIDTH, HEIGHT = 90, 70
LEVEL = Level(0, (WIDTH, HEIGHT), Fraction(1))
PIXELS = paint_noise(WIDTH, HEIGHT, seed=3)


class ArrayReader:
    """A slide in memory."""

    levels = (LEVEL,)

    def read(
        self, level: Level, x: int, y: int, width: int, height: int, only: np.ndarray | None = None
    ) -> np.ndarray:
        assert x >= 0
        assert y >= 0
        assert x + width <= WIDTH
        assert y + height <= HEIGHT
        return PIXELS[y : y + height, x : x + width]


def view(downsample: Fraction, origin: tuple[int, int] = (0, 0)) -> ScaledView:
    return ScaledView(ArrayReader(), LEVEL, downsample, origin)  # type: ignore[arg-type]


def mean_of_area(x0: Fraction, y0: Fraction, side: Fraction) -> list[int]:
    """The mean over a square, one pixel at a time, rounded half up."""
    total = [Fraction(0)] * 3
    for y in range(int(y0), int(-(-(y0 + side) // 1))):
        for x in range(int(x0), int(-(-(x0 + side) // 1))):
            share_x = min(x0 + side, Fraction(x + 1)) - max(x0, Fraction(x))
            share_y = min(y0 + side, Fraction(y + 1)) - max(y0, Fraction(y))
            for channel in range(3):
                total[channel] += share_x * share_y * int(PIXELS[y, x, channel])
    return [int(value / side**2 + Fraction(1, 2)) for value in total]


ratios = st.builds(Fraction, st.integers(1, 60), st.integers(1, 20)).filter(
    lambda ratio: Fraction(1, 3) <= ratio <= 12
)


@settings(max_examples=60)
@given(ratios, st.integers(0, 10), st.integers(0, 10), st.data())
def test_every_pixel_is_the_mean_of_the_area_under_it(
    ratio: Fraction, ox: int, oy: int, data: st.DataObject
) -> None:
    columns, rows = int((WIDTH - ox) / ratio), int((HEIGHT - oy) / ratio)
    x = data.draw(st.integers(0, columns - 1))
    y = data.draw(st.integers(0, rows - 1))
    got = view(ratio, (ox, oy)).read(x, y, 1, 1)[0, 0].tolist()
    assert got == mean_of_area(ox + x * ratio, oy + y * ratio, ratio)


@settings(max_examples=60)
@given(ratios, st.data())
def test_a_pixel_does_not_depend_on_how_the_read_is_split(
    ratio: Fraction, data: st.DataObject
) -> None:
    columns, rows = int(WIDTH / ratio), int(HEIGHT / ratio)
    whole = view(ratio).read(0, 0, columns, rows)
    x = data.draw(st.integers(0, columns - 1))
    y = data.draw(st.integers(0, rows - 1))
    width = data.draw(st.integers(1, columns - x))
    height = data.draw(st.integers(1, rows - y))
    assert np.array_equal(
        view(ratio).read(x, y, width, height), whole[y : y + height, x : x + width]
    )


def test_two_by_two_means_by_hand() -> None:
    pixels = np.array([[[0] * 3, [1] * 3], [[1] * 3, [0] * 3]], dtype=np.uint8)

    class Tiny(ArrayReader):
        def read(
            self,
            level: Level,
            x: int,
            y: int,
            width: int,
            height: int,
            only: np.ndarray | None = None,
        ) -> np.ndarray:
            return pixels[y : y + height, x : x + width]

    tiny = ScaledView(Tiny(), Level(0, (2, 2), Fraction(1)), Fraction(2), (0, 0))  # type: ignore[arg-type]
    assert tiny.read(0, 0, 1, 1).tolist() == [[[1, 1, 1]]]  # 2 / 4 rounds up


def test_one_to_one_is_a_copy_of_the_pixels() -> None:
    assert np.array_equal(view(Fraction(1), (7, 5)).read(10, 20, 30, 40), PIXELS[25:65, 17:47])


@pytest.mark.parametrize("downsample", [Fraction(5, 2), Fraction(3)])
def test_one_colour_stays_one_colour(downsample: Fraction, tmp_path: Path) -> None:
    reader = open_slide(write_png(tmp_path / "p.png", paint(200, 200), mpp=1))
    got = ScaledView(reader, choose_level(reader.levels, downsample), downsample, (0, 0)).read(
        0, 0, 60, 60
    )
    assert (got == paint(60, 60)).all()


def test_a_level_cut_short_by_a_pixel_goes_on_with_its_last_column() -> None:
    short = Level(1, (45, 35), Fraction(2))  # of a 91-px-wide slide: 45.5 level pixels

    class Short(ArrayReader):
        def read(
            self,
            level: Level,
            x: int,
            y: int,
            width: int,
            height: int,
            only: np.ndarray | None = None,
        ) -> np.ndarray:
            assert x + width <= 45
            return np.broadcast_to(
                np.arange(x, x + width, dtype=np.uint8)[None, :, None], (height, width, 3)
            )

    shown = ScaledView(Short(), short, Fraction(13, 2), (0, 0))  # type: ignore[arg-type]
    # The last of 14 pixels covers level columns 42.25 to 45.5: 0.75 · 42 + 43 + 44 + 0.5 · 44 …
    # over 3.25, the last half-column as 44.
    expected = (Fraction(3, 4) * 42 + 43 + 44 + Fraction(1, 2) * 44) / Fraction(13, 4)
    assert shown.read(13, 0, 1, 1)[0, 0, 0] == int(expected + Fraction(1, 2))


@given(
    st.integers(300, 2000),
    st.integers(300, 2000),
    st.integers(2, 60),
    st.integers(0, 5000),
    st.floats(0.05, 1.0),
)
def test_one_colour_stays_one_colour_whatever_the_level(
    width: int, height: int, reduced: int, origin: int, mpp: float
) -> None:
    """Levels of padded slides have downsamples such as 4.002: the sums must not run over."""
    from wsi_pipeline.core.geometry import downsample_between
    from wsi_pipeline.slides.base import resolve_levels

    level = resolve_levels([(width * reduced, height * reduced), (width, height + 1)])[-1]

    class Uniform(ArrayReader):
        def read(
            self,
            level: Level,
            x: int,
            y: int,
            width: int,
            height: int,
            only: np.ndarray | None = None,
        ) -> np.ndarray:
            return np.full((height, width, 3), 200, dtype=np.uint8)

    downsample = level.downsample * downsample_between(mpp, mpp * 1.37)
    shown = ScaledView(Uniform(), level, downsample, (origin, origin))  # type: ignore[arg-type]
    assert (shown.read(3, 5, 20, 10) == 200).all()
