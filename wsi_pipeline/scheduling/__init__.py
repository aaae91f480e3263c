"""Scheduling: what a job is and how jobs are run; the one door to Dask."""

from wsi_pipeline.scheduling.jobs import CLUSTERS, Deadlines, Job, Listener, Plan, Tls, Workers
from wsi_pipeline.scheduling.run import run_jobs

__all__ = ["CLUSTERS", "Deadlines", "Job", "Listener", "Plan", "Tls", "Workers", "run_jobs"]
