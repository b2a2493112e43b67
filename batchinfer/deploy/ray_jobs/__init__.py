"""Jobs on a running Ray cluster: submit a spec, show the jobs, stop a job."""

from batchinfer.deploy.ray_jobs.client import JobClient, connect
from batchinfer.deploy.ray_jobs.jobs import SubmittedJob, submitted_progress
from batchinfer.deploy.ray_jobs.send import Submission, submit
from batchinfer.deploy.ray_jobs.show import job_document, job_table, jobs_table

__all__ = [
    "JobClient",
    "Submission",
    "SubmittedJob",
    "connect",
    "job_document",
    "job_table",
    "jobs_table",
    "submit",
    "submitted_progress",
]
