"""Scheduling: what a job is and how jobs are run; the one door to Dask."""

from wsi_pipeline.scheduling.jobs import CLUSTERS, Deadlines, Job, Listener, Plan, Tls, Workers
from wsi_pipeline.scheduling.run import WorkerPool, open_workers, run_jobs

__all__ = [
    "CLUSTERS",
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
