"""Scheduling: what a job is and how jobs are run; the one door to Dask."""

from wsi_pipeline.scheduling.jobs import Deadlines, Job, Listener, Plan, Tls, Workers
from wsi_pipeline.scheduling.run import WorkerPool, open_workers, run_jobs

__all__ = [
    "Deadlines",
    "Job",
    "Listener",
    "Plan",
    "Tls",
    "WorkerPool",
    "Workers",
    "open_workers",
    "run_jobs",
]
