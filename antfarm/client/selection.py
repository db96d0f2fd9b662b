"""Which job a person means: by id, by the beginning of an id, by name, or the last one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

from antfarm import wire
from antfarm.client.connection import Connection
from antfarm.errors import InvalidArgument, JobNotFound
from antfarm.model import JobStatus
from antfarm.task import is_whole
from antfarm.text import is_text
from antfarm.v1 import job_pb2

LAST = "last"
_PAGE_JOBS = 1000


async def list_jobs(connection: Connection, *, name: str = "", limit: int | None = None) -> AsyncIterator[JobStatus]:
    """Jobs, newest first. `limit`: at most so many; None: all."""
    if limit is not None and (not is_whole(limit) or limit < 0):
        raise InvalidArgument(f"limit={limit!r}: give a whole number of at least 0; None is all")
    if not is_text(name):
        raise InvalidArgument(f"name={name!r}: give a text")
    token, left = "", limit
    while left is None or left > 0:
        request = job_pb2.ListJobsRequest(page_size=min(left or _PAGE_JOBS, _PAGE_JOBS), page_token=token, name=name)
        answer = await connection.call(connection.jobs.ListJobs, request)
        for job in answer.jobs:
            yield wire.status_from_wire(job)
        token = answer.next_page_token
        left = None if left is None else left - len(answer.jobs)
        if not token:
            return


async def find_job(connection: Connection, selector: str) -> JobStatus:
    """The job of an id, a unique beginning of an id, a name (the newest of that name), or "last". JobNotFound otherwise."""
    if not is_text(selector) or not selector:
        raise InvalidArgument(f"{selector!r} is no job: give its id, a beginning of it, its name, or 'last'")
    if selector == LAST:
        async for status in list_jobs(connection, limit=1):
            return status
        raise JobNotFound("there is no job yet")
    with suppress(JobNotFound, InvalidArgument):
        answer = await connection.call(connection.jobs.GetJob, job_pb2.GetJobRequest(job_id=selector))
        return wire.status_from_wire(answer.job)
    async for status in list_jobs(connection, name=selector, limit=1):
        return status
    found = [status async for status in list_jobs(connection) if status.job_id.startswith(selector)]
    if not found:
        raise JobNotFound(f"no job has the id or name {selector!r}")
    if len(found) > 1:
        shown = ", ".join(status.job_id for status in found[:3])
        raise InvalidArgument(
            f"{selector!r} is the beginning of {len(found)} job ids: {shown}{' ...' if found[3:] else ''}"
        )
    return found[0]
