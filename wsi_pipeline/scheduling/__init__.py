"""Scheduling: what a job is and how jobs are run; the one door to Dask."""

from wsi_pipeline.scheduling.jobs import Job, Listener, Plan, Workers
from wsi_pipeline.scheduling.run import run_jobs

__all__ = ["Job", "Listener", "Plan", "Workers", "run_jobs"]
