"""Scheduling: jobs, and running them in a plain loop or on Dask's workers."""

from wsi_pipeline.scheduling.jobs import Deadlines, Job, Tls, Workers
from wsi_pipeline.scheduling.run import WorkerPool, open_workers, run_jobs

__all__ = ["Deadlines", "Job", "Tls", "WorkerPool", "Workers", "open_workers", "run_jobs"]
