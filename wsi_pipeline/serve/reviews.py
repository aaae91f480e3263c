"""Reviews of slides over the server: one file per slide, written before an answer is confirmed."""

import logging
from collections.abc import Callable
from functools import cached_property
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError, StoreError, WsiError
from wsi_pipeline.counting.review import (
    Review,
    add_answer,
    ask_for_more,
    remove_last_answer,
    start_review,
)
from wsi_pipeline.counting.review_file import change_review, read_review, review_path
from wsi_pipeline.serve.decoding import outline_patch
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.result_reader import LoadedResult
from wsi_pipeline.serve.settings import ServeSettings
from wsi_pipeline.slides.images import encode_jpeg
from wsi_pipeline.store.patches import PatchStore, find_stores

NO_REVIEWS = "nothing is reviewed here; start with `wsi review`"
AROUND = 2
"""Patches of a store on each side of the one that is called."""
SCALE = 3
"""Pixels of the image per pixel of a store's patch, as which its outline is drawn."""
logger = logging.getLogger(__name__)


class ReviewService:
    """Reviews of the served slides by one reviewer; safe to share between threads."""

    def __init__(self, settings: ServeSettings) -> None:
        self.reviewer = str(settings.reviewer)
        self._wanted = settings.review_patches
        self._places = settings.stores
        self._lock = Lock()

    def read(self, loaded: LoadedResult) -> Review:
        """Return the slide's review as it is on disk, or a new one, which is not written yet.

        Raises Refusal where the file is damaged or is not of this slide.
        """
        path = review_path(loaded.result.folder.parent, loaded.result.folder.name)
        try:
            if path.exists():
                slide, grid = loaded.table.slide, loaded.table.grid
                return read_review(path, slide.fingerprint, grid)
        except StoreError as error:
            raise refuse_review(error) from error
        return self._start(loaded)

    def answer(self, loaded: LoadedResult, row: int, col: int, is_positive: bool) -> Review:
        """Write one answer. Raises Refusal."""
        grid = loaded.table.grid
        if not (row < grid.rows and col < grid.cols):
            raise Refusal(404, "no such patch")
        number = row * grid.cols + col
        return self._change(
            loaded, lambda review: add_answer(review, self.reviewer, number, is_positive)
        )

    def undo(self, loaded: LoadedResult) -> tuple[Review, int | None]:
        """Remove the reviewer's last answer; return the number of its patch, None for none."""
        removed: list[int | None] = [None]

        def change(review: Review) -> Review:
            review, removed[0] = remove_last_answer(review, self.reviewer)
            return review

        return self._change(loaded, change), removed[0]

    def ask_more(self, loaded: LoadedResult, patches: int) -> Review:
        """Ask about more patches. Raises Refusal for another than the first reviewer."""

        def change(review: Review) -> Review:
            if not review.is_led_by(self.reviewer):
                text = f"only {review.first_reviewer}, who began this review, asks for more patches"
                raise ConfigError(text)
            return ask_for_more(review, patches)

        return self._change(loaded, change)

    def _change(self, loaded: LoadedResult, change: Callable[[Review], Review]) -> Review:
        path = review_path(loaded.result.folder.parent, loaded.result.folder.name)

        def apply(review: Review | None) -> Review:
            return change(review or self._start(loaded))

        try:
            with self._lock:
                slide, grid = loaded.table.slide, loaded.table.grid
                return change_review(path, slide.fingerprint, grid, apply)
        except ConfigError as error:
            raise Refusal(409, str(error)) from error
        except StoreError as error:
            raise refuse_review(error) from error

    def _start(self, loaded: LoadedResult) -> Review:
        table, heatmap = loaded.table, loaded.heatmap
        if table.sample is not None:
            raise Refusal(409, "is an estimate of a sample; infer the whole slide first")
        return start_review(
            loaded.result.folder.name,
            table.slide.fingerprint,
            table.grid,
            heatmap.probability,
            str(loaded.model.get("digest")),
            (table.class_names[0], heatmap.positive_class),
            self._wanted,
        )

    @cached_property
    def _stores(self) -> list[PatchStore]:
        opened = []
        for path in find_stores(self._places) if self._places else ():
            try:
                opened.append(PatchStore(path))
            except WsiError as error:
                logger.warning("left out: %s", error)
        return opened

    def surroundings_from_store(self, loaded: LoadedResult, row: int, col: int) -> bytes | None:
        """Return a patch with its neighbours from the slide's patch store, None without one."""
        slide, grid = loaded.table.slide, loaded.table.grid
        for store in self._stores:
            if store.slide.fingerprint == slide.fingerprint and store.grid == grid:
                return encode_jpeg(compose_patches(store, row, col))
        return None


def compose_patches(store: PatchStore, row: int, col: int) -> NDArray[np.uint8]:
    """Return a store's patch, outlined, among its neighbours; white where the store has none.

    Patches lie side by side at their stride; a pixel of theirs is SCALE² of the image's.
    """
    spec = store.grid.spec
    reach = AROUND * spec.stride_px
    pixels = np.full((2 * reach + spec.side_px, 2 * reach + spec.side_px, 3), 255, dtype=np.uint8)
    offsets = store.positions.astype(np.int64) - (row, col)
    near = np.flatnonzero((np.abs(offsets) <= AROUND).all(axis=1))
    for (down, right), patch in zip(offsets[near].tolist(), store.read_patches(near), strict=True):
        y, x = reach + down * spec.stride_px, reach + right * spec.stride_px
        pixels[y : y + spec.side_px, x : x + spec.side_px] = patch
    large = pixels.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    outline_patch(large, SCALE * reach, SCALE * reach, SCALE * spec.side_px)
    return large


def refuse_review(error: StoreError) -> Refusal:
    """Return the refusal of a review file; its text names the file as the reviewer knows it."""
    return Refusal(422, "reviews/" + str(error).rpartition("/reviews/")[2])
