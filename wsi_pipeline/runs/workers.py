"""Options of every run over many slides: workers, share of the slides, disk space."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.runs.disk_space import DEFAULT_MIN_FREE, DiskSpace
from wsi_pipeline.scheduling import Tls, Workers
from wsi_pipeline.slides.selection import FoundSlide, Shard

MOST_TILERS = 16
"""Processes that tile unless more are asked for: each takes about half a gigabyte."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Options of the workers, named like those of the commands."""

    workers: int | Workers | None = None
    """Processes; 0: a plain loop here; None: one per GPU, or one; to tile one per core."""
    gpus: str | None = None
    """GPUs to use, such as `0,2`; None: all."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, or a file that holds it."""
    tls_ca_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    cluster: str = "local"
    slurm_config: Path | None = None
    dashboard: bool = False

    def __post_init__(self) -> None:
        tls = (self.tls_ca_file, self.tls_cert, self.tls_key)
        if any(tls) and not all(tls):
            raise ConfigError("--tls-ca-file, --tls-cert and --tls-key belong together")

    def choose_workers(self, device: str = "cpu", is_tiling: bool = False) -> Workers:
        """Return the cluster that is named, or processes here: one per GPU, or one.

        Tiling is all decoding, and threads share an interpreter: it gets one process per core.
        Raises ConfigError.
        """
        if isinstance(self.workers, Workers):
            return self.workers
        count = self.workers
        if is_tiling and count is None and self.scheduler is None and self.cluster == "local":
            count = min(available_cores(), MOST_TILERS)
        tls = None
        if self.tls_ca_file and self.tls_cert and self.tls_key:
            tls = Tls(self.tls_ca_file, self.tls_cert, self.tls_key)
        pool = Workers(
            count=count,
            scheduler=self.scheduler,
            tls=tls,
            cluster=self.cluster,
            slurm_config=self.slurm_config,
            wants_gpu=device != "cpu",
            has_dashboard=self.dashboard,
        )
        if pool.is_elsewhere:
            return replace(pool, threads=max(2, available_cores()))
        wanted = tuple(name.strip() for name in (self.gpus or "").split(",") if name.strip())
        found = _find_gpus(device)
        if wanted and not found:
            raise ConfigError(
                f"--gpus {','.join(wanted)}: no usable GPU on this machine, or --device cpu; leave"
                " it out"
            )
        pool = replace(pool, gpus=(wanted or found) if found else (), wants_gpu=bool(found))
        return replace(pool, threads=max(2, available_cores() // max(pool.processes, 1)))


def _find_gpus(device: str) -> tuple[str, ...]:
    """Return the GPUs that may be used; does not load torch where none is wanted."""
    if device == "cpu":
        return ()
    from wsi_pipeline.models.device import choose_device, list_gpus

    return list_gpus() if choose_device(device).type == "cuda" else ()


@dataclass(frozen=True, kw_only=True)
class RunOptions(WorkerOptions):
    """Options of the commands that run over many slides, named like theirs."""

    shard: str | None = None
    """`I/N`: take only every N-th slide, from the I-th on."""
    min_free: int = DEFAULT_MIN_FREE
    """Bytes that stay free on the disk."""
    force: bool = False
    """Overwrite existing results."""

    @property
    def disk_space(self) -> DiskSpace:
        """What is to stay free on the disk."""
        return DiskSpace(self.min_free)

    @property
    def suffix(self) -> str:
        """What tells the tables of this share of the slides from those of the others."""
        return "" if self.shard is None else Shard.parse(self.shard).suffix

    def take_share(self, slides: Sequence[FoundSlide]) -> list[FoundSlide]:
        """Return this run's slides, by paths that mean the same in every process."""
        share = slides if self.shard is None else Shard.parse(self.shard).take(slides)
        return [
            replace(
                slide,
                path=slide.path.absolute(),
                label_file=slide.label_file.absolute() if slide.label_file else None,
            )
            for slide in share
        ]
