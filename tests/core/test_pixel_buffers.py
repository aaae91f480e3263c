"""Memory that is used again."""

import gc

import numpy as np
import pytest

from wsi_pipeline.core.buffers import PixelBuffers


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_when_its_array_is_gone() -> None:
    buffers = PixelBuffers()
    first = buffers.take((4, 50, 50, 3))
    place = address(first)
    del first
    assert address(buffers.take((4, 50, 50, 3))) == place


def test_memory_of_which_a_view_is_held_is_not_handed_out() -> None:
    buffers = PixelBuffers()
    first = buffers.take((4, 50, 50, 3))
    view = first[1:2]
    view[:] = 7
    del first
    buffers.take((4, 50, 50, 3))[:] = 9
    assert (view == 7).all()


def test_two_arrays_at_a_time_share_nothing() -> None:
    buffers = PixelBuffers()
    first, second = buffers.take((2, 3)), buffers.take((2, 3))
    first[:], second[:] = 1, 2
    assert first.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_an_empty_block_takes_no_memory_of_another() -> None:
    buffers = PixelBuffers()
    assert buffers.take((0, 50, 50, 3)).shape == (0, 50, 50, 3)


@pytest.mark.timeout(20)
def test_memory_that_a_garbage_collection_gives_back_waits_for_nobody() -> None:
    buffers = PixelBuffers()
    thresholds = gc.get_threshold()
    try:
        for _ in range(20):
            circle: list[object] = [buffers.take((4, 50, 50, 3))]
            circle.append(circle)
            del circle
            gc.set_threshold(1)  # at every opportunity, also within `take`
            assert buffers.take((4, 50, 50, 3)).shape == (4, 50, 50, 3)
            gc.set_threshold(*thresholds)
    finally:
        gc.set_threshold(*thresholds)
