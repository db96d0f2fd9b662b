"""`antfarm job`: look at jobs, wait for them, end and repeat them."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from antfarm import wire
from antfarm.cli.progress import ProgressLine
from antfarm.cli.session import check_limit, exit_code, open_farm, output
from antfarm.cli.task import failure_text, last_failure
from antfarm.client.farm import AsyncFarm
from antfarm.client.job import AsyncJob, Order
from antfarm.duration import seconds
from antfarm.errors import AntFarmError
from antfarm.model import JobState, JobStatus, TaskState
from antfarm.program import EXIT_OK
from antfarm.text import escape, one_line, show
from antfarm.v1 import task_pb2
from antfarm.wire import Arrived

_FAILED: Sequence[TaskState] = (TaskState.FAILED, TaskState.DEAD_LETTER, TaskState.EXPIRED, TaskState.CANCELLED)


def add(commands: Any, flags: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    group = commands.add_parser("job", help="look at jobs, wait for them, end and repeat them").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )
    jobs_help = "job id, a unique beginning of it, a job's name, or `last`"

    def verb(name: str, run: Any, about: str, jobs: str = "") -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = group.add_parser(name, parents=[flags], help=about, description=about)
        if jobs == "one":
            parser.add_argument("job", nargs="?", default="last", metavar="JOB", help=jobs_help + "; default: last")
        elif jobs == "many":
            parser.add_argument("jobs", nargs="+", metavar="JOB", help=jobs_help)
        parser.set_defaults(run=run)
        return parser

    listing = verb("list", list_jobs, "jobs, newest first")
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many; default: 20; 0: all")
    listing.add_argument("--name", default="", help="only jobs of this name")
    verb("show", show_job, "one job with its counts", "one")
    verb("explain", explain, "in words: why tasks of it wait, were repeated or failed, and what would help", "one")
    verb("watch", watch, "show progress until the job has ended", "one")
    waiting = verb(
        "wait", wait, "wait for the end; exit code 0 all succeeded, 1 some failed, 4 cancelled, 5 timeout", "one"
    )
    waiting.add_argument("--timeout", metavar="TIME", help="give up after e.g. 90s, 10m")
    waiting.add_argument("--progress", action="store_true", help="show progress")
    cancelling = verb("cancel", cancel, "cancel what has not ended", "many")
    cancelling.add_argument("--cause", default="", help="why, for people")
    verb("pause", pause, "give out no more tasks; running ones go on", "many")
    verb("resume", resume, "end a pause", "many")
    retrying = verb("retry", retry, "a new job of the tasks that ended without success", "one")
    retrying.add_argument("--failed", action="store_true", default=True, help="the failed ones (the default)")
    retrying.add_argument("--wait", action="store_true", help="show progress and wait for the end")
    results = verb(
        "results", show_results, "values in input order, as JSON lines unless --output says otherwise", "one"
    )
    results.add_argument("--follow", "-f", action="store_true", help="wait for those that have not ended")
    verb("purge", purge, "remove ended jobs and their records", "many")


def job_row(status: JobStatus) -> dict[str, Any]:
    """A job as the list shows it."""
    ended = sum(count for state, count in status.counts.items() if state.terminal)
    return {
        "job": status.job_id,
        "name": status.spec.name,
        "type": status.spec.template.type,
        "state": "PAUSED" if (status.paused or status.type_paused) and not status.state.terminal else status.state.name,
        "tasks": status.task_count,
        "done": ended,
        "failed": sum(status.counts.get(state, 0) for state in _FAILED),
        "age": f"{show(status.age_s)}",
        "took": show(status.duration_s) if status.duration_s is not None else "",
    }


async def list_jobs(options: argparse.Namespace) -> int:
    """antfarm job list."""
    check_limit(options.limit)
    async with open_farm(options) as farm:
        rows = [job_row(status) async for status in farm.jobs(name=options.name, limit=options.limit or None)]
    output(options).rows(rows, empty=f"no job is named {escape(options.name)}" if options.name else "no jobs yet")
    return EXIT_OK


async def show_job(options: argparse.Namespace) -> int:
    """antfarm job show."""
    async with open_farm(options) as farm:
        status = await farm.find(options.job)
    row = {
        **job_row(status),
        "priority": status.spec.priority,
        "counts": {state.name: count for state, count in status.counts.items()},
        "retried": status.retried_count or None,
        "waits for": [f"{d.job_id} ({d.kind.name.lower()})" for d in status.spec.dependencies],
        "max failures": status.spec.max_failures,
        "type paused": status.type_paused or None,
        "labels": dict(status.spec.labels),
        "retry of": status.retry_of,
        "cause": status.cause,
    }
    output(options).row(row)
    return EXIT_OK


async def explain(options: argparse.Namespace) -> int:
    """antfarm job explain."""
    async with open_farm(options) as farm:
        job = await farm.job(options.job)
        output(options).explanation(job.job_id, await job.explain())
    return EXIT_OK


def goes_on(options: argparse.Namespace, job_id: str) -> None:
    """Note what to say when waiting for the job is interrupted."""
    options.parting = f"job {job_id} goes on: `antfarm job wait {job_id}` waits for it"


async def follow(
    options: argparse.Namespace, job: AsyncJob[Any], *, progress: bool, row: bool = True, timeout: str | None = None
) -> int:
    """Wait for the end of a job, show how it goes, and say how it ended, with `row` on standard output; the exit code."""
    line = ProgressLine(wanted=progress)
    status = None
    goes_on(options, job.job_id)
    try:
        async with asyncio.timeout(None if timeout is None else seconds(timeout)):
            async for status in job.watch():
                line.update(status)
                if status.state.terminal:
                    break
    except TimeoutError:
        line.clear()
        raise TimeoutError(f"job {job.job_id} has not ended within {timeout}") from None
    except BaseException:
        line.clear()
        raise
    status = status if status is not None and status.state.terminal else await job.status()
    line.close(status)
    if row:
        output(options).rows([job_row(status)])
    if status.state is not JobState.SUCCEEDED:
        print(
            f"antfarm: {await _trouble(job, status)}; `antfarm job explain {job.job_id}`", file=sys.stderr, flush=True
        )
    return exit_code(status)


async def _trouble(job: AsyncJob[Any], status: JobStatus) -> str:
    """Why a job that has ended did not succeed, in one line."""
    if status.state is JobState.CANCELLED:
        return one_line(f"job {job.job_id} was cancelled: {status.cause}".strip(": "))
    states, what = _FAILED[:-1], "failed"
    if not any(status.counts.get(state) for state in states):
        states, what = _FAILED[-1:], "were cancelled"
    number = sum(status.counts.get(state, 0) for state in states)
    return one_line(f"{number:,} of {status.task_count:,} tasks {what}: {await _first(job, states)}".strip(": "))


async def _first(job: AsyncJob[Any], states: Sequence[TaskState]) -> str:
    """What is on record of the first task in one of the states; "" when it is not to be had any more."""
    request = task_pb2.ListTasksRequest(
        job_id=job.job_id,
        states=[state.value for state in states],  # type: ignore[misc]
        page_size=1,
    )
    with suppress(AntFarmError):
        for task in (await job.connection.call(job.connection.tasks.ListTasks, request)).tasks:
            failure = last_failure(task)
            return wire.task_state_from_wire(task.state).name.lower() if failure is None else failure_text(failure)
    return ""


async def watch(options: argparse.Namespace) -> int:
    """antfarm job watch."""
    async with open_farm(options) as farm:
        return await follow(options, await farm.job(options.job), progress=True, row=False)


async def wait(options: argparse.Namespace) -> int:
    """antfarm job wait."""
    if options.timeout is not None:
        seconds(options.timeout)  # refused before anything is asked
    async with open_farm(options) as farm:
        job = await farm.job(options.job)
        return await follow(options, job, progress=options.progress, timeout=options.timeout)


async def _each(options: argparse.Namespace, act: Any) -> int:
    """Do it to every job that is named; show how they stand after it."""
    rows = []
    async with open_farm(options) as farm:
        for selector in options.jobs:
            status = await act(await farm.job(selector))
            rows.append(job_row(status))
    output(options).rows(rows)
    return EXIT_OK


async def cancel(options: argparse.Namespace) -> int:
    """antfarm job cancel."""
    return await _each(options, lambda job: job.cancel(options.cause))


async def pause(options: argparse.Namespace) -> int:
    """antfarm job pause."""
    return await _each(options, lambda job: job.pause())


async def resume(options: argparse.Namespace) -> int:
    """antfarm job resume."""
    return await _each(options, lambda job: job.resume())


async def retry(options: argparse.Namespace) -> int:
    """antfarm job retry."""
    async with open_farm(options) as farm:
        job = await (await farm.job(options.job)).retry()
        if options.wait:
            return await follow(options, job, progress=True)
        output(options).rows([job_row(await job.status())])
    return EXIT_OK


async def purge(options: argparse.Namespace) -> int:
    """antfarm job purge."""
    async with open_farm(options) as farm:
        for selector in options.jobs:
            job = await farm.job(selector)
            await job.purge()
            if options.output == "table":
                print(f"removed {escape(job.job_id)}")
    return EXIT_OK


async def show_results(options: argparse.Namespace) -> int:
    """antfarm job results."""
    form = options.output if options.output != "table" else "jsonl"
    failed = False
    async with open_farm(options) as farm:
        status = await farm.find(options.job)
        rows = []
        if options.follow:
            goes_on(options, status.job_id)
        async for row in _result_rows(farm, status.job_id, wait=options.follow):
            failed |= row["state"] != TaskState.SUCCEEDED.name
            if form == "jsonl":
                print(json.dumps(row), flush=True)
            elif form == "quiet":
                print(json.dumps(row.get("value")), flush=True)
            else:
                rows.append(row)
        if form == "json":
            output(options).rows(rows)
    return int(failed)


async def _result_rows(farm: AsyncFarm, job_id: str, *, wait: bool) -> AsyncIterator[dict[str, Any]]:
    """What is recorded, in input order; without `wait` also past tasks that have not ended."""
    order = Order()
    held: list[Arrived] = []
    async for batch in farm.connection.results(job_id, follow=wait):
        if wait:
            for message in order.take(batch):
                yield await _result_row(farm, message)
        else:
            held.extend(batch)
    for message in sorted(held, key=lambda found: found.index):
        yield await _result_row(farm, message)


async def _result_row(farm: AsyncFarm, message: Any) -> dict[str, Any]:
    """The value as the JSON that it travels as; a form such as {"$date": ...} stays one."""
    result = wire.result_from_wire(message)
    row: dict[str, Any] = {"index": result.index, "state": result.state.name}
    if result.state is TaskState.SUCCEEDED:
        data = await farm.connection.load(result.result)
        row["value"] = json.loads(data) if not data.startswith(b"\x80") else {"$pickle": len(data)}
    elif result.failure is not None:
        row["error"] = f"{result.failure.kind}: {result.failure.message}".strip(": ")
    return row
