"""A dry run of `wsi infer`: slide by slide, without writing anything."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import disk_usage

from wsi_pipeline.core.limits import available_cores, limited_memory
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideState, describe_failure
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.choice import ModelChoice
from wsi_pipeline.runs.cutting import scale_by_table
from wsi_pipeline.runs.disk_space import find_existing
from wsi_pipeline.runs.infer import choose_engine, make_jobs, open_model, read_tiling
from wsi_pipeline.runs.workers import choose_workers, take_share
from wsi_pipeline.scheduling import open_workers
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.stages.infer import InferJob
from wsi_pipeline.stages.plan import PreviewState, SlidePreview


@dataclass(frozen=True, slots=True)
class RunPreview:
    """The previews of all slides, in the order given."""

    slides: tuple[SlidePreview, ...]
    account: RunAccount
    """As the run's own would be, as far as that can be known beforehand."""

    def count(self, state: PreviewState) -> int:
        """Return the number of slides in that state."""
        return Counter(slide.state for slide in self.slides)[state]

    @property
    def missing_patches(self) -> int:
        """Patches to be predicted."""
        return sum(slide.missing_patches for slide in self.slides)

    @property
    def prediction_bytes(self) -> int:
        """Of the predictions of all slides that are not done, when they are finished."""
        open_states = (PreviewState.NEW, PreviewState.STARTED)
        return sum(each.prediction_bytes for each in self.slides if each.state in open_states)

    @property
    def patch_bytes(self) -> int:
        """Of the patch stores that are still to be finished."""
        return sum(slide.patch_bytes for slide in self.slides)


def preview_run(
    slides: Sequence[FoundSlide],
    model: Path,
    results: Path,
    options: InferOptions | None = None,
    listener: Listener | None = None,
) -> RunPreview:
    """Open every slide and read what earlier runs left; writes nothing, raises as the run would."""
    options, listener = options or InferOptions(), listener or Listener()
    loaded = open_model(model, options, listener)
    slides = scale_by_table(slides, options)
    choice = _choose_engine(model, options)
    slides, _ = take_share(slides, options.shard)
    jobs = make_jobs(slides, choice, read_tiling(options, loaded), results, options)
    listener.working_on(f"opening {len(jobs):,} slide{'' if len(jobs) == 1 else 's'}")
    with limited_memory(), ThreadPoolExecutor(available_cores(), "look") as pool:
        found = list(pool.map(preview_slide, jobs))
    return RunPreview(
        tuple(preview for preview, _ in found), RunAccount(tuple(outcome for _, outcome in found))
    )


def _choose_engine(model: Path, options: InferOptions) -> ModelChoice:
    """Return the engine of the run, chosen by a worker where there are GPUs, else here."""
    workers = choose_workers(options, options.device)
    if not workers.gpus:
        return choose_engine(model, options, Listener())
    with open_workers(replace(workers, count=1, gpus=workers.gpus[:1])) as pool:
        return choose_engine(model, options, Listener(), replace(workers, count=1), pool)


def preview_slide(job: InferJob) -> tuple[SlidePreview, SlideOutcome]:
    """Return what is known of one slide, and the outcome that a run would have."""
    slide_id, path = job.slide.slide_id, str(job.slide.path)
    try:
        preview = job.preview()
    except Exception as error:  # noqa: BLE001 - the batch boundary: a fault is the slide's own
        failure = describe_failure(slide_id, path, error)
        return SlidePreview(slide_id, PreviewState.FAILED, reason=failure.message), failure
    state, is_done = preview.state, preview.state is PreviewState.DONE
    ending = SlideState.OK if preview.patches else SlideState.ZERO
    return preview, SlideOutcome(slide_id, path, ending, state.value, preview.patches, is_done)


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or would be."""
    return disk_usage(find_existing(folder)).free
