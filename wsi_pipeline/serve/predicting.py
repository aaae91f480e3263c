"""Predictions for uploaded images: single patches, and larger images cut on the model's grid."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import SCALE_TOLERANCE
from wsi_pipeline.core.errors import GpuLost, SlideError
from wsi_pipeline.core.geometry import (
    MAX_MPP,
    MIN_MPP,
    Grid,
    PatchSpec,
    all_positions,
    choose_block_size,
    count_blocks,
    lay_grid,
)
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.models.opening import open_predictor
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.outputs.report_html import describe_grid
from wsi_pipeline.serve.decoding import DecoderPool, DecodingError
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.schemas import ImagePrediction
from wsi_pipeline.serve.settings import Limits
from wsi_pipeline.slides.base import Level
from wsi_pipeline.slides.images import ImageReader
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.stages.tile import resolve_scale
from wsi_pipeline.stages.tile_config import TileConfig

logger = logging.getLogger(__name__)


class SentImage(ImageReader):
    """A decoded image, RGB (h, w, 3), as a slide, so that it is cut exactly as slides are."""

    def __init__(self, pixels: NDArray[np.uint8], size: tuple[int, int], mpp: float) -> None:
        self._pixels = pixels
        self.levels = (Level(0, size, Fraction(1)),)
        self.info = SlideInfo(
            "image", "image", size, mpp, "user", (Fraction(1),), (0, 0, *size), ""
        )


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """Plan of one uploaded image."""

    size: tuple[int, int]
    """(width, height)"""
    grid: Grid | None
    """None for a single patch."""
    mpp: float

    @property
    def patches(self) -> int:
        """Number of patches."""
        return 1 if self.grid is None else self.grid.rows * self.grid.cols


class PredictionService:
    """Decodes, cuts and predicts uploads; a few requests at a time."""

    def __init__(self, predictor: Predictor, pool: DecoderPool, limits: Limits) -> None:
        self.predictor = predictor
        self._pool = pool
        self._limits = limits
        self._places = threading.BoundedSemaphore(limits.predictions)

    def predict(self, images: Sequence[bytes], mpp: float | None) -> list[ImagePrediction]:
        """Return one answer per image.

        Raises Refusal for input that the model does not take; every limit is checked before
        anything is decoded.
        """
        limits = self._limits
        if not images or len(images) > limits.images:
            raise Refusal(413 if images else 422, f"send 1 to {limits.images} images at a time")
        if mpp is not None and not MIN_MPP <= mpp <= MAX_MPP:
            raise Refusal(422, f"mpp is in µm per pixel, {MIN_MPP:g} to {MAX_MPP:g}")
        if not self._places.acquire(blocking=False):
            raise Refusal(503, "too many predictions are under way; try again in a moment")
        try:
            sizes = self._measure(images)
            plans = [self._plan(number, size, mpp) for number, size in enumerate(sizes)]
            if sum(plan.patches for plan in plans) > limits.grid_patches:
                raise Refusal(413, f"images of more than {limits.grid_patches:,} patches together")
            return [
                self._predict_image(number, image, plan)
                for number, (image, plan) in enumerate(zip(images, plans, strict=True))
            ]
        finally:
            self._places.release()

    def _measure(self, images: Sequence[bytes]) -> list[tuple[int, int]]:
        sizes = []
        for number, image in enumerate(images):
            try:
                header = self._pool.ask({"do": "measure"}, image, self._limits.read_s).header
            except DecodingError as error:
                raise Refusal(415, f"image {number}: neither PNG nor JPEG") from error
            sizes.append((int(header["width"]), int(header["height"])))
        if sum(width * height for width, height in sizes) > self._limits.decoded_px:
            raise Refusal(413, f"images of more than {self._limits.decoded_px:,} pixels together")
        return sizes

    def _plan(self, number: int, size: tuple[int, int], mpp: float | None) -> ImagePlan:
        spec = self.predictor.model.spec
        is_patch = size == (spec.side_px, spec.side_px)
        if is_patch and (mpp is None or abs(mpp - spec.mpp) <= SCALE_TOLERANCE * spec.mpp):
            return ImagePlan(size, None, spec.mpp)
        if mpp is None:
            is_no_patch = f"not {spec.side_px} × {spec.side_px} px"
            raise Refusal(422, f"image {number}: {is_no_patch}; state its mpp to have it cut")
        return ImagePlan(size, self._lay_grid(number, size, mpp, spec), mpp)

    def _lay_grid(self, number: int, size: tuple[int, int], mpp: float, spec: PatchSpec) -> Grid:
        blank = SentImage(np.empty((0, 0, 3), dtype=np.uint8), size, mpp)
        try:
            resolved, downsample = resolve_scale(blank, TileConfig(spec=spec))
        except SlideError as error:
            coarser = f"at {mpp:g} µm/px it is coarser than the model's {spec.mpp:g} µm/px"
            raise Refusal(422, f"image {number}: {coarser}") from error
        grid = lay_grid((0, 0, *size), downsample, resolved)
        if grid.rows * grid.cols == 0:
            raise Refusal(422, f"image {number}: smaller than one patch of {spec.field_um:g} µm")
        return grid

    def _decode(self, number: int, image: bytes) -> NDArray[np.uint8]:
        """Return RGB (h, w, 3), writable, as torch wants it."""
        request = {"do": "decode", "max_pixels": self._limits.decoded_px}
        try:
            header, content = self._pool.ask(request, image, self._limits.read_s)
        except DecodingError as error:
            wanted = "send a whole PNG or JPEG of 8 bits per channel"
            raise Refusal(422, f"image {number}: cannot be decoded; {wanted}") from error
        shape = (int(header["height"]), int(header["width"]), 3)
        return np.frombuffer(bytearray(content), dtype=np.uint8).reshape(shape)

    def _compute(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities (b,); where this process has lost its GPU, by the CPU from then on.

        Raises EnvironmentFault.
        """
        try:
            return self.predictor(pixels)
        except GpuLost as error:
            logger.warning("%s; uploads are computed on the CPU from now on", error)
            self.predictor = open_predictor(self.predictor.model, "cpu").predictor
            return self.predictor(pixels)

    def _predict_image(self, number: int, image: bytes, plan: ImagePlan) -> ImagePrediction:
        pixels = self._decode(number, image)
        threshold = np.float32(self.predictor.model.terms.alone.count)
        if plan.grid is None:
            probability = self._compute(pixels[None])
        else:
            probability = self._predict_grid(pixels, plan, plan.grid)
        rows = [
            [float(value) if np.isfinite(value) else None for value in row]
            for row in probability.reshape(-1, 1 if plan.grid is None else plan.grid.cols)
        ]
        return ImagePrediction(
            image=number,
            size=list(plan.size),
            positives=int((probability >= threshold).sum()),
            probability=rows[0][0] if plan.grid is None else None,
            grid=None if plan.grid is None else describe_grid(plan.grid),
            probabilities=None if plan.grid is None else rows,
        )

    def _predict_grid(
        self, pixels: NDArray[np.uint8], plan: ImagePlan, grid: Grid
    ) -> NDArray[np.float32]:
        positions = all_positions(grid)
        block_size = choose_block_size(len(positions), grid.spec.side_px)
        reader = SentImage(pixels, plan.size, plan.mpp)
        patches = SlidePatches(reader, grid, positions, block_size)
        blocks = range(count_blocks(len(positions), block_size))
        return np.concatenate([self._compute(patches.read_block(one).pixels) for one in blocks])
