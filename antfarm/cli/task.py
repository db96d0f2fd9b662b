"""`antfarm task`: look at single tasks, their logs, cancel them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import grpc.aio

from antfarm.cli.session import check_limit, find_task, open_farm, output
from antfarm.client.farm import AsyncFarm
from antfarm.client.job import AsyncJob
from antfarm.errors import InvalidArgument
from antfarm.model import TaskState
from antfarm.program import EXIT_OK
from antfarm.text import lines, show
from antfarm.v1 import task_pb2
from antfarm.wire import error_from_rpc, failure_from_wire


def add(commands: Any, flags: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    group = commands.add_parser("task", help="look at single tasks, their logs, cancel them").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )

    def verb(name: str, run: Any, about: str, *, task: bool = True) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = group.add_parser(name, parents=[flags], help=about, description=about)
        if task:
            parser.add_argument(
                "task", metavar="JOB/INDEX", help="a task, e.g. last/3; a number alone: of the last job"
            )
        parser.set_defaults(run=run)
        return parser

    listing = verb("list", list_tasks, "tasks of a job", task=False)
    listing.add_argument("--job", "-j", default="last", metavar="JOB", help="the job; default: last")
    states = ", ".join(state.name for state in TaskState)
    listing.add_argument("--state", action="append", default=[], metavar="STATE", help=f"only these: {states}")
    listing.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many; default: 100; 0: all")
    verb("show", show_task, "one task: state, attempts, failure")
    verb("explain", explain, "in words: why it waits, was repeated, is slow or failed, and what would help")
    logs = verb("logs", show_logs, "what the task has printed and logged")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until it has ended")
    cancelling = verb("cancel", cancel, "cancel one task")
    cancelling.add_argument("--cause", default="", help="why, for people")


def _state(number: int) -> str:
    try:
        return TaskState(number).name
    except ValueError:  # of a newer version
        return f"STATE_{number}"


def failure_text(message: Any) -> str:
    """What failed, in one line of whatever length."""
    return f"{message.kind}: {message.message}".strip(": ")


async def list_tasks(options: argparse.Namespace) -> int:
    """antfarm task list."""
    names = [name.upper() for part in options.state for name in part.split(",")]
    unknown = [name for name in names if name not in TaskState.__members__]
    if unknown:
        raise InvalidArgument(f"{unknown[0]} is no state of a task; there are {', '.join(TaskState.__members__)}")
    check_limit(options.limit)
    rows: list[dict[str, Any]] = []
    async with open_farm(options) as farm:
        job_id = (await farm.find(options.job)).job_id
        token = ""
        while not options.limit or len(rows) < options.limit:
            request = task_pb2.ListTasksRequest(
                job_id=job_id,
                states=[TaskState[name].value for name in names],  # type: ignore[misc]
                page_size=min(options.limit - len(rows), 1000) if options.limit else 1000,
                page_token=token,
            )
            answer = await farm.connection.call(farm.connection.tasks.ListTasks, request)
            rows += [_row(task) for task in answer.tasks]
            token = answer.next_page_token
            if not token:
                break
    output(options).rows(rows, empty="no such tasks")
    return EXIT_OK


def last_failure(task: Any) -> Any:
    """Its last failure in the protocol's form; None when it has none."""
    if task.HasField("last_failure"):
        return task.last_failure
    return task.result.failure if task.result.HasField("failure") else None


def _row(task: Any) -> dict[str, Any]:
    failure = last_failure(task)
    return {
        "task": f"{task.job_id}/{task.index}",
        "state": _state(task.state),
        "attempt": task.attempt or None,
        "worker": task.worker_id,
        "backup": f"attempt {task.backup_attempt} on {task.backup_worker_id}" if task.backup_attempt else "",
        "progress": f"{task.progress:.0%} {task.progress_text}".strip() if task.HasField("progress") else "",
        "failure": failure_text(failure)[:100] if failure is not None else "",
    }


async def show_task(options: argparse.Namespace) -> int:
    """antfarm task show."""
    async with open_farm(options) as farm:
        job_id, index = await find_task(farm, options.task)
        request = task_pb2.GetTaskRequest(job_id=job_id, index=index)
        answer = await farm.connection.call(farm.connection.tasks.GetTask, request)
    task = answer.task
    row: dict[str, Any] = {**_row(task), "type": task.type, "waits for": task.waits_for}
    row["failure"] = ""
    if task.HasField("active_for"):
        row["active for"] = show(task.active_for.ToMilliseconds() / 1000)
    for name in ("app_failures", "crashes", "infra_failures"):
        row[name.replace("_", " ")] = getattr(task, name) or None
    if answer.payload:
        row["payload"] = answer.payload[:400].decode("utf-8", "replace")
    if task.HasField("result"):
        row["took"] = show(task.result.run_duration.ToMicroseconds() / 1e6)
        row["result"] = task.result.result[:400].decode("utf-8", "replace")
        row["outputs"] = [blob.key for blob in task.result.outputs]
    failure = last_failure(task)
    if failure is not None:
        row["failure class"] = failure_from_wire(failure).failure_class.name.lower()
        row["failure"] = failure_text(failure)
        row["traceback"] = failure.traceback
        row["log"] = failure.log_tail
    output(options).row(row)
    return EXIT_OK


async def explain(options: argparse.Namespace) -> int:
    """antfarm task explain."""
    async with open_farm(options) as farm:
        job_id, index = await find_task(farm, options.task)
        output(options).explanation(
            f"{job_id}/{index}", await AsyncJob(farm.connection, job_id).future(index).explain()
        )
    return EXIT_OK


async def show_logs(options: argparse.Namespace) -> int:
    """antfarm task logs."""
    async with open_farm(options) as farm:
        job_id, index = await find_task(farm, options.task)
        if options.follow:
            options.parting = f"task {job_id}/{index} goes on: `antfarm task logs -f {job_id}/{index}`"
        await _stream_logs(farm, job_id, index, follow=options.follow)
    return EXIT_OK


async def _stream_logs(farm: AsyncFarm, job_id: str, index: int, *, follow: bool) -> None:
    request = task_pb2.StreamTaskLogsRequest(job_id=job_id, index=index, follow=follow)
    call = farm.connection.tasks.StreamTaskLogs(request)
    try:
        async for message in call:
            sys.stdout.write(lines(message.text))
            sys.stdout.flush()
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None
    finally:
        call.cancel()


async def cancel(options: argparse.Namespace) -> int:
    """antfarm task cancel."""
    async with open_farm(options) as farm:
        job_id, index = await find_task(farm, options.task)
        request = task_pb2.CancelTaskRequest(job_id=job_id, index=index, cause=options.cause)
        answer = await farm.connection.call(farm.connection.tasks.CancelTask, request)
    output(options).rows([_row(answer.task)])
    return EXIT_OK
