"""The workers of a run over many slides, and its share of the slides."""

from collections.abc import Sequence
from dataclasses import replace

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.core.options import WorkerOptions
from wsi_pipeline.models.choice import Gpu
from wsi_pipeline.models.gpus import find_gpus
from wsi_pipeline.scheduling import Tls, Workers
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.selection import Shard

MOST_TILERS = 16
"""Processes that tile unless more are asked for: each takes about half a gigabyte."""


CORES_OF_ONE_TILER = 2
"""Cores that one process keeps busy, whose threads decode, cut and write."""


def choose_workers(options: WorkerOptions, device: str = "cpu", tiled: int = 0) -> Workers:
    """Return the cluster that is named, or processes here: one per GPU, or one.

    Tiling is all decoding, and threads share an interpreter: `tiled` slides get one process per
    core. One slide on two cores gets one, which is at work before two are started. Raises
    ConfigError.
    """
    if isinstance(options.workers, Workers):
        return options.workers
    count = options.workers
    if tiled and count is None and options.scheduler is None and options.cluster == "local":
        is_small = tiled == 1 and available_cores() <= CORES_OF_ONE_TILER
        count = 1 if is_small else min(available_cores(), MOST_TILERS)
    tls = None
    if options.tls_ca_file and options.tls_cert and options.tls_key:
        tls = Tls(options.tls_ca_file, options.tls_cert, options.tls_key)
    pool = Workers(
        count=count,
        scheduler=options.scheduler,
        tls=tls,
        cluster=options.cluster,
        slurm_config=options.slurm_config,
        wants_gpu=device != "cpu",
        has_dashboard=options.dashboard,
    )
    if pool.is_elsewhere:
        return replace(pool, threads=max(2, available_cores()))
    wanted = tuple(name.strip() for name in (options.gpus or "").split(",") if name.strip())
    found = find_gpus(device)
    if wanted and not found:
        raise ConfigError(
            f"--gpus {','.join(wanted)}: no usable GPU on this machine, or --device cpu; leave it"
            " out"
        )
    gpus = choose_gpus(wanted, found)
    if pool.processes == 0 and len(gpus) > 1:
        if wanted:
            raise ConfigError("--workers 0 computes on one GPU; name one with --gpus")
        gpus = gpus[:1]
    pool = replace(pool, gpus=gpus, wants_gpu=bool(found))
    return replace(pool, threads=max(2, available_cores() // max(pool.processes, 1)))


def choose_gpus(wanted: Sequence[str], found: Sequence[Gpu]) -> tuple[str, ...]:
    """Return the names of the GPUs that are wanted, by number among those found or by UUID.

    All where none is named. Raises ConfigError for one that is not among them.
    """
    if not wanted:
        return tuple(gpu.name for gpu in found)
    names = []
    for each in wanted:
        if each.isdecimal():
            matches = [*found][int(each) : int(each) + 1]
        else:
            matches = [gpu for gpu in found if each in (gpu.name, gpu.uuid)]
        if len(matches) != 1 or matches[0].name in names:
            listed = ", ".join(
                f"{number}: {gpu.uuid or gpu.name}" for number, gpu in enumerate(found)
            )
            fault = "named twice" if matches else "not among the GPUs that this process may use"
            raise ConfigError(f"--gpus {each}: {fault} ({listed}); name them by number or UUID")
        names.append(matches[0].name)
    return tuple(names)


def take_share(slides: Sequence[FoundSlide], shard: str | None) -> tuple[list[FoundSlide], str]:
    """Return this run's slides, `I/N` of all, and the suffix of its tables.

    Their paths mean the same in every process.
    """
    share = None if shard is None else Shard.parse(shard)
    slides = [
        replace(
            slide,
            path=slide.path.absolute(),
            label_file=slide.label_file.absolute() if slide.label_file else None,
        )
        for slide in (slides if share is None else share.take(slides))
    ]
    return slides, "" if share is None else share.suffix
