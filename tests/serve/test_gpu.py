"""A server on a machine with GPUs, without one: who computes uploads, and what a fault becomes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.builders import make_checkpoint, make_patches, write_model
from wsi_pipeline.core.errors import EnvironmentFault, GpuLost
from wsi_pipeline.models.opening import OpenedPredictor, open_predictor
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.serve import services
from wsi_pipeline.serve.decoding import DecoderPool
from wsi_pipeline.serve.errors import answer_fault
from wsi_pipeline.serve.predicting import PredictionService
from wsi_pipeline.serve.services import open_services
from wsi_pipeline.serve.settings import MIB, Limits, ServeSettings
from wsi_pipeline.slides.images import encode_png

SIDE = 22


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1, 2048 * MIB, 4)
    yield pool
    pool.close()


class LostGpu(Predictor):
    """A predictor whose GPU has failed."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise GpuLost("the GPU failed (CUDA error: an illegal memory access was encountered)")


def test_uploads_are_computed_on_the_cpu_where_the_gpu_was_lost(pool: DecoderPool) -> None:
    checkpoint = make_checkpoint(side_px=SIDE)
    service = PredictionService(LostGpu(checkpoint), pool, Limits())
    patch = make_patches(1, SIDE)
    (answer,) = service.predict([encode_png(patch[0])], None)
    expected = open_predictor(checkpoint, "cpu").predictor
    assert answer.probability == pytest.approx(float(expected(patch)[0]))
    assert type(service.predictor) is Predictor


def test_a_fault_of_the_machine_is_no_fault_of_the_upload() -> None:
    held = "the device's memory does not hold the model and one patch; free it"
    answer = answer_fault(EnvironmentFault(held))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert b"the machine cannot do it now" in answer.body
    assert b"memory" not in answer.body


@pytest.mark.parametrize(("has_slides", "device"), [(True, "cpu"), (False, "cuda")])
def test_a_server_with_workers_leaves_the_gpus_to_them(
    has_slides: bool, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that prepares CUDA holds memory of the first GPU, all of one in exclusive mode."""
    asked: list[str] = []

    def open_on(model: object, wanted: str) -> OpenedPredictor:
        asked.append(wanted)
        return OpenedPredictor(Predictor(make_checkpoint(side_px=SIDE)), "opened")

    monkeypatch.setattr(services, "open_predictor", open_on)
    for name in ("results", "slides"):
        (tmp_path / name).mkdir()
    settings = ServeSettings(
        results=(tmp_path / "results",),
        slides=tmp_path / "slides" if has_slides else None,
        model=write_model(tmp_path / "m.safetensors", make_checkpoint(side_px=SIDE)),
        device="cuda",
        decoders=1,
    )
    with open_services(settings) as opened:
        assert (opened.jobs is not None) is has_slides
    assert asked == [device]
