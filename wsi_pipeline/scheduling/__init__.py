"""Scheduling: jobs, and running them in a plain loop or on Dask's workers."""

from wsi_pipeline.scheduling.jobs import Deadlines, Job, NotYet, Tls, Workers
from wsi_pipeline.scheduling.run import KeptWorkers, WorkerPool, open_workers, run_jobs

__all__ = [
    "Deadlines",
    "Job",
    "KeptWorkers",
    "NotYet",
    "Tls",
    "WorkerPool",
    "Workers",
    "open_workers",
    "run_jobs",
]
