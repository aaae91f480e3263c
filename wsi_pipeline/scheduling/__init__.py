"""Scheduling: what a job is and how jobs are run; the one door to Dask."""

from wsi_pipeline.scheduling.jobs import CLUSTERS, Deadlines, Job, Listener, Plan, Tls, Workers
from wsi_pipeline.scheduling.run import Crew, open_crew, run_jobs

__all__ = [
    "CLUSTERS",
    "Crew",
    "Deadlines",
    "Job",
    "Listener",
    "Plan",
    "Tls",
    "Workers",
    "open_crew",
    "run_jobs",
]
