"""Predictions for uploaded images: single patches, and larger images cut on the model's grid."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import SCALE_TOLERANCE
from wsi_pipeline.core.errors import SlideError
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
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.outputs.report_html import describe_grid
from wsi_pipeline.serve.decoding import DecoderPool, DecodingError
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.settings import Limits
from wsi_pipeline.slides.base import Level
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.stages.tile import TileConfig, resolve_scale


class SentImage:
    """A decoded image as a slide of one level, so that it is cut exactly as slides are."""

    def __init__(self, pixels: NDArray[np.uint8], mpp: float) -> None:
        self._pixels = pixels
        height, width = pixels.shape[:2]
        self.levels = (Level(0, (width, height), Fraction(1)),)
        self.info = SlideInfo(
            "image",
            "image",
            (width, height),
            mpp,
            "user",
            (Fraction(1),),
            (0, 0, width, height),
            "",
        )

    @property
    def fallbacks(self) -> int:
        """Always 0: there is no other reader."""
        return 0

    def read(
        self,
        level: Level,
        x: int,
        y: int,
        width: int,
        height: int,
        only: NDArray[np.int64] | None = None,
    ) -> NDArray[np.uint8]:
        """Return RGB (height, width, 3) at (x, y); grids never reach beyond the image."""
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


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

    def predict(self, images: Sequence[bytes], mpp: float | None) -> list[dict[str, Any]]:
        """Return one answer per image.

        Raises Refusal for input that the model does not take; every limit is checked before
        anything is decoded.
        """
        if not images or len(images) > self._limits.images:
            raise Refusal(
                413 if images else 422, f"send 1 to {self._limits.images} images at a time"
            )
        if mpp is not None and not MIN_MPP <= mpp <= MAX_MPP:
            raise Refusal(422, f"mpp is in µm per pixel, {MIN_MPP:g} to {MAX_MPP:g}")
        if not self._places.acquire(blocking=False):
            raise Refusal(503, "too many predictions are under way; try again in a moment")
        try:
            plans = [
                self._plan(number, size, mpp) for number, size in enumerate(self._measure(images))
            ]
            self._check_sums(plans)
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
            raise Refusal(
                422,
                f"image {number}: not {spec.side_px} × {spec.side_px} px; state its mpp (µm per"
                " pixel) to have it cut",
            )
        return ImagePlan(size, self._lay_grid(number, size, mpp, spec), mpp)

    def _lay_grid(self, number: int, size: tuple[int, int], mpp: float, spec: PatchSpec) -> Grid:
        blank = np.empty((0, 0, 3), dtype=np.uint8)
        reader = SentImage(blank, mpp)
        try:
            resolved, downsample = resolve_scale(reader, TileConfig(spec=spec))
        except SlideError as error:
            raise Refusal(
                422,
                f"image {number}: at {mpp:g} µm/px it is coarser than the model's {spec.mpp:g}"
                " µm/px",
            ) from error
        grid = lay_grid((0, 0, *size), downsample, resolved)
        if grid.rows * grid.cols == 0:
            raise Refusal(422, f"image {number}: smaller than one patch of {spec.field_um:g} µm")
        return grid

    def _check_sums(self, plans: Sequence[ImagePlan]) -> None:
        if sum(plan.patches for plan in plans) > self._limits.grid_patches:
            raise Refusal(
                413, f"images of more than {self._limits.grid_patches:,} patches together"
            )

    def _decode(self, number: int, image: bytes) -> NDArray[np.uint8]:
        try:
            reply = self._pool.ask(
                {"do": "decode", "max_pixels": self._limits.decoded_px}, image, self._limits.read_s
            )
        except DecodingError as error:
            raise Refusal(
                422,
                f"image {number}: cannot be decoded; send a whole PNG or JPEG of 8 bits per"
                " channel",
            ) from error
        shape = (int(reply.header["height"]), int(reply.header["width"]), 3)
        return np.frombuffer(bytearray(reply.payload), dtype=np.uint8).reshape(
            shape
        )  # writable, as torch wants it

    def _predict_image(self, number: int, image: bytes, plan: ImagePlan) -> dict[str, Any]:
        pixels = self._decode(number, image)
        threshold = np.float32(self.predictor.model.threshold)
        probability = (
            self.predictor(pixels[None])
            if plan.grid is None
            else self._predict_grid(pixels, plan.grid, plan.mpp)
        )
        values = [float(value) if np.isfinite(value) else None for value in probability]
        answer: dict[str, Any] = {
            "image": number,
            "size": list(plan.size),
            "positives": int((probability >= threshold).sum()),
        }
        if plan.grid is None:
            return answer | {"probability": values[0], "grid": None, "probabilities": None}
        rows = [
            values[start : start + plan.grid.cols]
            for start in range(0, len(values), plan.grid.cols)
        ]
        return answer | {
            "probability": None,
            "grid": describe_grid(plan.grid),
            "probabilities": rows,
        }

    def _predict_grid(
        self, pixels: NDArray[np.uint8], grid: Grid, mpp: float
    ) -> NDArray[np.float32]:
        positions = all_positions(grid)
        block_size = choose_block_size(len(positions), grid.spec.side_px)
        patches = SlidePatches(SentImage(pixels, mpp), grid, positions, block_size)
        blocks = range(count_blocks(len(positions), block_size))
        return np.concatenate(
            [self.predictor(patches.read_block(block).pixels) for block in blocks]
        )
