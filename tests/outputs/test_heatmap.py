import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import make_table, write_probabilities
from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms
from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.core.outcome import (
    SlideState,
    SlideSummary,
    describe_counting,
    describe_interval,
)
from wsi_pipeline.counting.context import average_context
from wsi_pipeline.outputs.heatmap import (
    Aggregation,
    Heatmap,
    build_heatmap,
    find_positive,
    number_groups,
    place_on_grid,
)
from wsi_pipeline.outputs.summarise import describe_summary, find_hot_spot, summarise
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.predictions import Predictions, prepare_predictions

NAN = float("nan")


ROW = [(0, 0), (0, 1), (0, 2)]
CONTEXT = replace(ModelTerms(), on_grid=Terms(count=0.4, detect=0.3, context_um=200))
"""A model whose context is one patch wide, and which tells patches alone at one half."""


def predicted(
    tmp_path: Path,
    positions: list[tuple[int, int]],
    probability: list[float],
    terms: ModelTerms | None = None,
) -> Predictions:
    """Predictions of patches of 50 px at 4 µm/px: 0.04 mm² each; `probability` is each patch's by
    the network itself.
    """
    staging = Staging(tmp_path / "slide", {})
    table = make_table(positions, mpp=4.0, block_size=100, rows=4, cols=5)
    model = {
        "terms": (terms or ModelTerms()).to_json(),
        "digest": "d",
        "class_names": ["negative", "positive"],
    }
    prepare_predictions(staging, table, {"model": model})
    if positions:
        write_probabilities(staging, table, 0, np.array(probability, dtype=np.float32))
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
        predicted(tmp_path, [(0, 0), (0, 1)], [0.4, 0.6]), Aggregation(0.3)
    )
    assert heatmap.positive.sum() == 2


@pytest.mark.parametrize(
    ("chosen", "threshold", "source"),
    [("count", 0.4, "count"), ("detect", 0.3, "detect"), (0.4, 0.4, "user"), (0, 0, "user")],
)
def test_a_threshold_and_its_source(
    chosen: float | str, threshold: float, source: str, tmp_path: Path
) -> None:
    heatmap = build_heatmap(predicted(tmp_path, [(0, 0)], [0.4], CONTEXT), Aggregation(chosen))
    assert (heatmap.threshold, heatmap.threshold_source) == (threshold, source)


def test_patches_alone_have_thresholds_of_their_own(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, [(0, 0)], [0.4], CONTEXT)
    assert build_heatmap(predictions, Aggregation(context_um=0)).threshold == 0.5


def test_a_map_is_as_it_was_predicted_unless_said_otherwise(tmp_path: Path) -> None:
    heatmap = build_heatmap(predicted(tmp_path, [(0, 0)], [0.4]))
    plain = Heatmap(heatmap.grid, heatmap.probability, 0.5, "positive")
    assert [(one.context_um, one.min_region_mm2) for one in (heatmap, plain)] == [(0, 0)] * 2


def test_neighbours_weigh_by_the_models_gaussian(tmp_path: Path) -> None:
    # One patch of 200 µm is one deviation. The middle of 0, 1, 0 in logits, where two in a row
    # weigh exp(-1/2) and the one between them 1: 1 / (1 + 2 exp(-1/2)).
    shares = [0.5, 1 / (1 + math.exp(-1)), 0.5]
    heatmap = build_heatmap(predicted(tmp_path, ROW, shares, CONTEXT))
    logit = 1 / (1 + 2 * math.exp(-0.5))
    assert heatmap.probability[0, 1] == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)
    assert heatmap.context_um == 200


def test_unknown_neighbours_weigh_nothing(tmp_path: Path) -> None:
    # Unreadable at (0, 1), no tissue anywhere else: what is known keeps its own value.
    probability = build_heatmap(predicted(tmp_path, ROW, [0.8, NAN, 0.8], CONTEXT)).probability
    assert probability[0, [0, 2]] == pytest.approx(0.8)
    assert np.isnan(probability).sum() == 18


@pytest.mark.parametrize("terms", [ModelTerms(), CONTEXT])
def test_no_context_is_each_patch_alone(terms: ModelTerms, tmp_path: Path) -> None:
    predictions = predicted(tmp_path, ROW, [0.1, 0.9, 0.3], terms)
    heatmap = build_heatmap(predictions, Aggregation(context_um=0))
    assert heatmap.probability[0, :3].tolist() == predictions.alone.tolist()
    assert heatmap.context_um == 0


def test_another_context_is_told_in_micrometres(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, ROW, [0.1, 0.9, 0.4])
    by_hand = average_context(place_on_grid(predictions.table, predictions.logit), 1.5)
    found = build_heatmap(predictions, Aggregation(context_um=300))
    assert np.array_equal(found.probability, Calibration().apply(by_hand), equal_nan=True)
    assert found.context_um == 300


def test_a_known_prevalence_shifts_the_log_odds(tmp_path: Path) -> None:
    # From half positive to a fifth: odds of 1 become odds of 1/4, so 0.8 (odds of 4) becomes 0.5.
    terms = replace(ModelTerms(), positive_share=0.5)
    predictions = predicted(tmp_path, [(0, 0), (0, 1)], [0.8, 0.5], terms)
    heatmap = build_heatmap(predictions, Aggregation(prevalence=0.2))
    assert heatmap.probability[0, :2] == pytest.approx([0.5, 0.2])
    assert heatmap.prevalence == 0.2


def test_the_prevalence_of_the_validation_changes_nothing(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, ROW, [0.1, 0.9, 0.3], replace(CONTEXT, positive_share=0.3))
    assert np.array_equal(
        build_heatmap(predictions, Aggregation(prevalence=0.3)).probability,
        build_heatmap(predictions).probability,
        equal_nan=True,
    )


def test_no_prevalence_for_a_model_that_does_not_say_its_own(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, [(0, 0)], [0.8])
    with pytest.raises(ConfigError, match=r"does not record the share .* leave --prevalence out"):
        build_heatmap(predictions, Aggregation(prevalence=0.2))


def test_a_count_is_its_own_estimate_without_an_interval(tmp_path: Path) -> None:
    summary = summary_of(predicted(tmp_path, ROW, [0.9, 0.8, 0.2]))
    assert (summary.positives_estimate, summary.positives_low, summary.positives_high) == (
        2,
        None,
        None,
    )
    assert summary.interval_source == "none"


def test_where_nothing_was_assessed_nothing_is_estimated(tmp_path: Path) -> None:
    summary = summary_of(predicted(tmp_path, [(0, 0)], [NAN], WITH_ERRORS))
    assert (summary.positives_estimate, summary.interval_source) == (None, "none")


SIXTH = math.pi / 6
WITH_ERRORS = replace(ModelTerms(), count_errors=tuple([0.01] * 18 + [SIXTH]))
"""Of 19 patients, all of whom 95 % takes in; the worst count was off by 30 degrees."""


def test_errors_of_validation_patients_give_an_interval(tmp_path: Path) -> None:
    # Half of 4 patches is 45 degrees in the arcsine of the root: from 15 to 75 degrees,
    # sin² 15° = (1 - cos 30°) / 2.
    cells = [*ROW, (0, 3)]
    summary = summary_of(predicted(tmp_path, cells, [0.9, 0.8, 0.2, 0.1], WITH_ERRORS))
    low = (1 - math.sqrt(3) / 2) / 2
    assert summary.interval_source == "validation"
    assert summary.positives_estimate == 2
    assert (summary.positives_low, summary.positives_high) == pytest.approx(
        (4 * low, 4 * (1 - low))
    )


def test_the_interval_of_a_count_is_said_in_words(tmp_path: Path) -> None:
    summary = summary_of(predicted(tmp_path, [*ROW, (0, 3)], [0.9, 0.8, 0.2, 0.1], WITH_ERRORS))
    words = "95 % interval 0 to 4 by the errors on the model's validation patients"
    assert describe_interval(summary) == words
    assert f"2 positive (50.0%), {words}, 0.08 of" in describe_summary(summary)
    reviewed = replace(summary, positives_estimate=3.0, interval_source="review")
    assert describe_interval(reviewed) == "about 3, 95 % interval 0 to 4 by a person's review"


def test_without_an_interval_there_is_none_in_words(tmp_path: Path) -> None:
    assert describe_interval(summary_of(predicted(tmp_path, ROW, [0.9, 0.8, 0.2]))) == "no interval"


def test_what_a_count_counts_is_said_in_words(tmp_path: Path) -> None:
    words = describe_counting(summary_of(predicted(tmp_path, ROW, [0.9, 0.8, 0.2], CONTEXT)))
    assert "the number of patches of 200 µm whose probability of positive, averaged" in words
    assert "averaged over 200 µm is 0.400 or more" in words


def test_eighteen_patients_are_too_few_for_an_interval(tmp_path: Path) -> None:
    terms = replace(WITH_ERRORS, count_errors=WITH_ERRORS.count_errors[1:])
    summary = summary_of(predicted(tmp_path, ROW, [0.9, 0.8, 0.2], terms))
    assert (summary.positives_low, summary.interval_source) == (None, "none")


@pytest.mark.parametrize(
    "changed",
    [
        Aggregation(0.5),
        Aggregation("detect"),
        Aggregation(context_um=100),
        Aggregation(min_region_mm2=0.01),
        Aggregation(prevalence=0.4),
    ],
)
def test_a_count_made_in_another_way_has_no_interval(changed: Aggregation, tmp_path: Path) -> None:
    terms = replace(WITH_ERRORS, positive_share=0.5)
    predictions = predicted(tmp_path, ROW, [0.9, 0.8, 0.2], terms)
    assert summarise(predictions, build_heatmap(predictions, changed)).interval_source == "none"


def test_the_models_own_context_in_so_many_words_keeps_the_interval(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, ROW, [0.9, 0.8, 0.2], WITH_ERRORS)
    own = Aggregation(context_um=WITH_ERRORS.on_grid.context_um)
    assert summarise(predictions, build_heatmap(predictions, own)).interval_source == "validation"


def test_positives_in_small_regions_are_left_out_and_counted(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, [(0, 0), (0, 1), (3, 4)], [0.9, 0.8, 0.7])
    summary = summarise(predictions, build_heatmap(predictions, Aggregation(min_region_mm2=0.08)))
    assert (summary.positives, summary.positives_left_out, summary.positive_regions) == (2, 1, 1)


def test_positives_that_touch_at_a_corner_are_large_together(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, [(0, 0), (1, 1), (3, 4)], [0.9, 0.8, 0.7])
    assert np.argwhere(
        build_heatmap(predictions, Aggregation(min_region_mm2=0.08)).positive
    ).tolist() == [
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
    "wrong",
    [
        {"threshold": 1.5},
        {"threshold": -0.1},
        {"threshold": NAN},
        {"threshold": "model"},
        {"context_um": -1},
        {"context_um": 200_000},
        {"context_um": NAN},
        {"min_region_mm2": NAN},
        {"prevalence": 0},
        {"prevalence": 1},
        {"prevalence": NAN},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Aggregation(**wrong)


@pytest.mark.parametrize("threshold", ["count", "detect", 0.0, 0.5, 1.0])
def test_every_threshold_from_0_to_1_is_taken(threshold: float | str) -> None:
    assert Aggregation(threshold, context_um=0.5, min_region_mm2=0.5).threshold == threshold
