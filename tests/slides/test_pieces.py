"""Pieces of tissue on one glass: numbered as one reads, specks together as the rest."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from tests.builders import make_table, paint
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.core.slide import Thumbnail
from wsi_pipeline.slides.pieces import find_pieces, number_pieces, number_tissue

PIXEL_UM = 10.0
"""A cell is ten pixels."""


def draw(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask with boxes of (top, left, height, width)."""
    mask = np.zeros((height, width), dtype=np.bool_)
    for top, left, tall, wide in boxes:
        mask[top : top + tall, left : left + wide] = True
    return mask


def numbers_at(numbers: np.ndarray, *places: tuple[int, int]) -> list[int]:
    return [int(numbers[place]) for place in places]


def test_spots_are_numbered_row_by_row_though_they_are_not_quite_in_line() -> None:
    spots = [(top + shift, left, 36, 36) for top, shifts in ((12, (0, 9, 3)), (84, (6, 0, 9)))
             for left, shift in zip((12, 84, 156), shifts, strict=True)]  # fmt: skip
    numbers = number_pieces(draw(150, 210, *spots), PIXEL_UM)
    places = [(top + 18, left + 18) for top, left, _, _ in spots]
    assert numbers_at(numbers, *places) == [1, 2, 3, 4, 5, 6]


def test_a_crack_within_a_section_makes_no_second_piece() -> None:
    mask = draw(60, 120, (12, 12, 36, 36), (12, 52, 36, 36))  # 4 px of 10 µm apart
    assert int(number_pieces(mask, PIXEL_UM).max()) == 1


def test_pieces_more_than_two_cells_apart_are_two() -> None:
    mask = draw(60, 120, (12, 12, 36, 36), (12, 69, 36, 36))  # 21 px of 10 µm apart
    assert numbers_at(number_pieces(mask, PIXEL_UM), (30, 30), (30, 80)) == [1, 2]


def test_specks_are_the_rest_and_glass_is_nothing() -> None:
    """36 × 36 pixels of 10 µm are 0.13 mm², 6 × 6 are 0.0036 mm²."""
    numbers = number_pieces(draw(60, 120, (12, 12, 36, 36), (24, 84, 6, 6)), PIXEL_UM)
    assert numbers_at(numbers, (30, 30), (26, 86), (0, 0)) == [1, -1, 0]


def test_the_largest_is_a_piece_however_small() -> None:
    numbers = number_pieces(draw(60, 120, (12, 12, 6, 6), (12, 60, 12, 6)), PIXEL_UM)
    assert numbers_at(numbers, (14, 14), (14, 62)) == [-1, 1]


def test_a_mask_without_tissue_has_no_piece() -> None:
    assert not number_pieces(np.zeros((20, 30), dtype=np.bool_), PIXEL_UM).any()


@pytest.fixture
def table() -> PatchTable:
    """Patches of 10 × 10 thumbnail pixels of 10 µm: columns 0 to 3 of a section, 8 to 11 of
    another, one on a speck in column 6, one on glass in column 5.
    """
    positions = [(row, col) for row in range(4) for col in (0, 1, 2, 3, 8, 9, 10, 11)]
    table = make_table([*positions, (0, 6), (0, 5)], side_px=50, mpp=2.0, rows=4, cols=12)
    mask = draw(40, 120, (0, 0, 40, 40), (0, 80, 40, 40), (2, 62, 6, 6))
    thumbnail = Thumbnail(paint(120, 40), Fraction(5), (0, 0))
    return replace(table, tissue=mask, thumbnail=thumbnail)


def test_a_patch_belongs_to_the_piece_that_it_lies_on(table: PatchTable) -> None:
    found = number_tissue(table).tissue_id
    assert found is not None
    by_column = dict(zip(table.positions[:, 1].tolist(), found.tolist(), strict=True))
    assert [by_column[col] for col in (0, 3, 5, 6, 8, 11)] == [1, 1, 0, 0, 2, 2]


def test_a_patch_whose_middle_is_glass_belongs_to_what_it_touches(table: PatchTable) -> None:
    assert table.tissue is not None
    table.tissue[14:17, 14:17] = False  # the middle of row 1, column 1
    found = number_tissue(table).tissue_id
    assert found is not None
    assert int(found[table.positions.tolist().index([1, 1])]) == 1


def test_patches_that_no_mask_chose_have_no_pieces(table: PatchTable) -> None:
    plain = replace(table, tissue=None)
    assert find_pieces(plain) is None
    assert number_tissue(plain).tissue_id is None
