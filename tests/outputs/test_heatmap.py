from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.builders import make_table
from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.core.outcome import SlideState, SlideSummary
from wsi_pipeline.outputs.heatmap import (
    Aggregation,
    Heatmap,
    build_heatmap,
    describe_summary,
    find_hot_spot,
    find_positive,
    number_groups,
    smooth_map,
    summarise,
)
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.predictions import Predictions, prepare_predictions, write_prediction_block

NAN = float("nan")


def predicted(
    tmp_path: Path,
    positions: list[tuple[int, int]],
    probability: list[float],
    threshold: float = 0.5,
) -> Predictions:
    """Predictions of patches of 50 px at 4 µm/px: 0.04 mm² each."""
    staging = Staging(tmp_path / "slide", {})
    table = make_table(positions, mpp=4.0, block_size=100, rows=4, cols=5)
    prepare_predictions(
        staging,
        table,
        {"model": {"threshold": threshold, "digest": "d", "class_names": ["negative", "positive"]}},
    )
    if positions:
        write_prediction_block(staging, table, 0, np.array(probability, dtype=np.float32), {})
    return Predictions(staging.product / PREDICTIONS)


def summary_of(predictions: Predictions) -> SlideSummary:
    return summarise(predictions, build_heatmap(predictions))


def test_probabilities_lie_in_their_cells(tmp_path: Path) -> None:
    heatmap = build_heatmap(predicted(tmp_path, [(0, 4), (3, 1)], [0.25, 0.75]))
    assert heatmap.probability.shape == (4, 5)
    assert heatmap.probability[0, 4] == 0.25
    assert heatmap.probability[3, 1] == 0.75
    assert np.isnan(heatmap.probability).sum() == 18


def test_nan_cells_are_not_positive() -> None:
    assert find_positive(np.array([0.9, NAN, 0.5, 0.1], dtype=np.float32), 0.5).tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_a_threshold_is_reached_by_its_own_float32() -> None:
    assert find_positive(np.array([0.3], dtype=np.float32), 0.3).all()


def test_figures_by_hand(tmp_path: Path) -> None:
    positions = [(0, 0), (0, 1), (1, 2), (3, 4), (2, 0)]
    summary = summary_of(predicted(tmp_path, positions, [0.9, 0.5, 0.6, 0.8, 0.2]))
    assert (summary.patches, summary.positives, summary.unreadable) == (5, 4, 0)
    assert summary.positive_fraction == 0.8
    assert summary.assessed_mm2 == pytest.approx(0.2)
    assert summary.positive_mm2 == pytest.approx(0.16)
    assert summary.mean_probability == pytest.approx(0.6)
    assert summary.p95_probability == pytest.approx(
        0.88
    )  # between 0.8 and 0.9, four fifths of the way
    assert summary.largest_positive_region_mm2 == pytest.approx(
        0.12
    )  # (0,0) (0,1) and, across the corner, (1,2)
    assert summary.state is SlideState.OK


def test_the_hot_spot_in_the_figures_is_an_area_about_a_centre(tmp_path: Path) -> None:
    # The map of 4 × 5 cells of 200 µm is hardly 1 mm wide: all of it is the window.
    summary = summary_of(
        predicted(tmp_path, [(0, 0), (0, 1), (3, 4), (2, 0)], [0.9, 0.5, 0.8, 0.2])
    )
    assert summary.hot_spot_positive_mm2 == pytest.approx(0.12)
    assert (summary.hot_spot_x_l0, summary.hot_spot_y_l0) == (125, 100)


def test_nothing_positive_is_zero_area_in_no_region(tmp_path: Path) -> None:
    summary = summary_of(predicted(tmp_path, [(0, 0)], [0.2]))
    assert (
        summary.positive_regions,
        summary.positive_mm2,
        summary.largest_positive_region_mm2,
    ) == (0, 0, 0)
    assert (summary.mean_positive_region_mm2, summary.hot_spot_positive_mm2) == (None, None)
    assert (summary.hot_spot_x_l0, summary.hot_spot_y_l0) == (None, None)


def test_unreadable_patches_are_neither_negative_nor_assessed(tmp_path: Path) -> None:
    summary = summary_of(
        predicted(tmp_path, [(0, 0), (0, 1), (0, 2), (0, 3)], [0.9, NAN, NAN, 0.1])
    )
    assert (summary.patches, summary.unreadable, summary.positives) == (4, 2, 1)
    assert summary.positive_fraction == 0.5
    assert summary.assessed_mm2 == pytest.approx(0.08)
    assert summary.state is SlideState.DAMAGED


def test_no_tissue_is_a_valid_result(tmp_path: Path) -> None:
    summary = summary_of(predicted(tmp_path, [], []))
    assert summary.state is SlideState.ZERO
    assert (summary.positive_fraction, summary.mean_probability, summary.assessed_mm2) == (
        None,
        None,
        0.0,
    )
    assert describe_summary(summary) == "no tissue, no patches"


def test_nothing_readable_is_a_failure(tmp_path: Path) -> None:
    assert summary_of(predicted(tmp_path, [(0, 0)], [NAN])).state is SlideState.FAILED


def test_one_line_of_figures(tmp_path: Path) -> None:
    line = describe_summary(
        summary_of(predicted(tmp_path, [(0, 0), (0, 1), (0, 2)], [0.9, 0.1, NAN]))
    )
    assert line == "3 patches, 1 positive (50.0%), 0.04 of 0.08 mm², 1 unreadable"


def test_regions_touch_at_corners() -> None:
    positive = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]], dtype=np.bool_)
    assert number_groups(positive, corners=True).tolist() == [
        [1, 0, 0, 2],
        [0, 1, 0, 2],
        [0, 0, 0, 2],
    ]
    assert number_groups(np.eye(4, dtype=np.bool_), corners=True).max() == 1
    assert number_groups(np.eye(4, dtype=np.bool_), corners=False).max() == 4
    assert not number_groups(np.zeros((2, 2), dtype=np.bool_), corners=True).any()
    assert not number_groups(np.zeros((0, 0), dtype=np.bool_), corners=True).any()


def test_another_threshold_may_be_drawn(tmp_path: Path) -> None:
    heatmap: Heatmap = build_heatmap(
        predicted(tmp_path, [(0, 0), (0, 1)], [0.4, 0.6]), threshold=0.3
    )
    assert heatmap.positive.sum() == 2


def test_who_chose_the_threshold_is_told(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, [(0, 0)], [0.4])
    assert build_heatmap(predictions).threshold_source == "model"
    assert build_heatmap(predictions, threshold=0.5).threshold_source == "user"


def test_a_map_is_as_it_was_predicted_unless_said_otherwise(tmp_path: Path) -> None:
    heatmap = build_heatmap(predicted(tmp_path, [(0, 0)], [0.4]))
    plain = Heatmap(heatmap.grid, heatmap.probability, 0.5, "positive")
    assert [(one.smooth_um, one.min_region_mm2) for one in (heatmap, plain, Aggregation())] == [
        (0, 0)
    ] * 3


def test_smoothing_is_told_in_micrometres(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, [(0, 1), (0, 2), (1, 2)], [0.1, 0.9, 0.4])
    by_hand = smooth_map(build_heatmap(predictions).probability, 1.0)  # a cell is 50 px of 4 µm
    assert np.array_equal(
        build_heatmap(predictions, smooth_um=200).probability, by_hand, equal_nan=True
    )


def test_smoothing_takes_nothing_from_cells_that_were_not_assessed() -> None:
    smooth = smooth_map(np.array([[0.8, NAN, 0.8]], dtype=np.float32), 1.0)
    assert smooth[0, 0] == pytest.approx(0.8)
    assert np.isnan(smooth[0, 1])


def test_smoothing_spreads_a_lone_peak() -> None:
    smooth = smooth_map(np.array([[0, 0, 1, 0, 0]], dtype=np.float32), 1.0)
    assert 0 < smooth[0, 1] < smooth[0, 2] < 1
    assert smooth[0, 1] == smooth[0, 3]


def test_no_smoothing_is_the_map_itself() -> None:
    probability = np.array([[0.1, NAN]], dtype=np.float32)
    assert smooth_map(probability, 0) is probability


def test_positives_in_small_regions_are_left_out_and_counted(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, [(0, 0), (0, 1), (3, 4)], [0.9, 0.8, 0.7])
    summary = summarise(predictions, build_heatmap(predictions, min_region_mm2=0.08))
    assert (summary.positives, summary.positives_left_out, summary.positive_regions) == (2, 1, 1)


def test_positives_that_touch_at_a_corner_are_large_together(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, [(0, 0), (1, 1), (3, 4)], [0.9, 0.8, 0.7])
    assert np.argwhere(build_heatmap(predictions, min_region_mm2=0.08).positive).tolist() == [
        [0, 0],
        [1, 1],
    ]


def test_regions_and_shares_by_hand(tmp_path: Path) -> None:
    summary = summary_of(
        predicted(tmp_path, [(0, 0), (0, 1), (2, 2), (3, 4)], [0.9, 0.8, 0.7, NAN])
    )
    assert summary.positive_regions == 2
    assert summary.mean_positive_region_mm2 == pytest.approx(0.06)
    assert summary.max_probability == pytest.approx(0.9)
    assert summary.unreadable_fraction == 0.25
    assert summary.unassessed_fraction == pytest.approx(17 / 20)


def test_the_hot_spot_is_the_densest_square_millimetre() -> None:
    positive = np.zeros((20, 20), dtype=np.bool_)
    positive[0, 0] = True
    positive[10:13, 8:12] = (
        True  # windows of 5 × 5 cells hold all 12 from rows 8–10 and columns 7–8 on
    )
    spot = find_hot_spot(positive, Grid(PatchSpec(50, 50, 4.0), 20, 20, Fraction(1), (1000, 0)))
    assert spot is not None
    assert (spot.positives, spot.x_l0, spot.y_l0) == (12, 1000 + (7 + 2.5) * 50, (8 + 2.5) * 50)


def test_a_slide_smaller_than_the_window_is_the_window() -> None:
    spot = find_hot_spot(np.array([[True, False]]), Grid(PatchSpec(50, 50, 4.0), 1, 2, Fraction(1)))
    assert spot is not None
    assert (spot.positives, spot.x_l0, spot.y_l0) == (1, 50, 25)


def test_the_hot_spot_of_overlapping_patches_lies_about_their_centres() -> None:
    # Patches of 51 px every 50: a cell stands for the 50 px in the patch's middle, from half a
    # patch pixel on.
    spot = find_hot_spot(np.array([[True, False]]), Grid(PatchSpec(51, 50, 4.0), 1, 2, Fraction(2)))
    assert spot is not None
    assert (spot.x_l0, spot.y_l0) == (101, 51)


@pytest.mark.parametrize(
    ("mpp", "side_cells"),
    [
        (30.0, 1),
        (4.002, 2),
        (3.998, 3),
    ],  # cells of 3 mm, of 400.2 µm (2.499 of them make 1 mm) and of 399.8 µm (2.501 of them)
)
def test_the_window_of_the_hot_spot_is_rounded_to_whole_cells(mpp: float, side_cells: int) -> None:
    spot = find_hot_spot(
        np.ones((6, 6), dtype=np.bool_), Grid(PatchSpec(100, 100, mpp), 6, 6, Fraction(1))
    )
    assert spot is not None
    assert (spot.positives, spot.x_l0, spot.y_l0) == (
        side_cells**2,
        side_cells * 50,
        side_cells * 50,
    )


def test_without_positives_there_is_no_hot_spot() -> None:
    assert (
        find_hot_spot(np.zeros((3, 3), dtype=np.bool_), Grid(PatchSpec(), 3, 3, Fraction(1)))
        is None
    )


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.5}, {"threshold": -0.1}, {"smooth_um": -1}, {"min_region_mm2": NAN}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Aggregation(**wrong)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5, 1.0])
def test_every_threshold_from_0_to_1_is_taken(threshold: float | None) -> None:
    assert Aggregation(threshold, smooth_um=0.5, min_region_mm2=0.5).threshold == threshold
