"""Jobs on a cluster that runs elsewhere: submitted, looked at and stopped through Ray's job client."""

from batchinfer.submit.client import JobClient, connect
from batchinfer.submit.jobs import SubmittedJob, submitted_progress
from batchinfer.submit.send import Submission, submit
from batchinfer.submit.show import job_document, job_table, jobs_table

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
