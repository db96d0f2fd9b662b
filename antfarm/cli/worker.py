"""`antfarm worker`: who works, and asking a worker to leave."""

from __future__ import annotations

import argparse
from typing import Any

from antfarm.cli.session import flag_seconds, open_farm, output
from antfarm.program import EXIT_OK
from antfarm.text import show
from antfarm.v1 import worker_pb2
from antfarm.wire import seconds_to_wire


def add(commands: Any, flags: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    group = commands.add_parser("worker", help="who works, and asking a worker to leave").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )

    def verb(name: str, run: Any, about: str, *, worker: bool = True) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = group.add_parser(name, parents=[flags], help=about, description=about)
        if worker:
            parser.add_argument("worker", metavar="WORKER", help="worker id")
        parser.set_defaults(run=run)
        return parser

    listing = verb("list", list_workers, "workers of the farm", worker=False)
    listing.add_argument("--all", action="store_true", help="also those that have left or are lost")
    verb("show", show_worker, "one worker")
    draining = verb("drain", drain, "let a worker finish what runs, and leave; an orchestrator below stays")
    draining.add_argument(
        "--limit",
        metavar="TIME",
        help="time in which running tasks may finish, at most the worker's --drain-s; default: 30s; said again it replaces the one before",
    )
    verb(
        "undrain",
        undrain,
        "take a drain back, or let a worker that comes back under its id get work; ends its quarantine too",
    )


def _row(worker: worker_pb2.Worker) -> dict[str, Any]:
    name = worker_pb2.WorkerState.Name(worker.state) if worker.state in worker_pb2.WorkerState.values() else "UNKNOWN"
    return {
        "worker": worker.worker_id,
        "state": name.removeprefix("WORKER_STATE_"),
        "host": worker.host,
        "slots": worker.slots,
        "holds": worker.held,
        "succeeded": worker.succeeded_count,
        "failed": worker.failed_count,
        "silent for": show(worker.silent_for.ToMilliseconds() / 1000),
        "kind": "orchestrator" if worker.orchestrator else "worker",
    }


def _amount(amount: float) -> float:
    """A whole one without a fraction."""
    return int(amount) if amount.is_integer() else amount


async def list_workers(options: argparse.Namespace) -> int:
    """antfarm worker list."""
    rows = []
    async with open_farm(options) as farm:
        token = ""
        while True:
            request = worker_pb2.ListWorkersRequest(page_size=1000, page_token=token)
            answer = await farm.connection.call(farm.connection.workers.ListWorkers, request)
            rows += [_row(worker) for worker in answer.workers]
            token = answer.next_page_token
            if not token:
                break
    kept = [row for row in rows if options.all or row["state"] not in ("GONE", "LOST")]
    output(options).rows(kept, empty="no workers; start one with `python -m services.worker --connect HOST:PORT`")
    return EXIT_OK


async def show_worker(options: argparse.Namespace) -> int:
    """antfarm worker show."""
    async with open_farm(options) as farm:
        request = worker_pb2.GetWorkerRequest(worker_id=options.worker)
        worker = (await farm.connection.call(farm.connection.workers.GetWorker, request)).worker
    more = {
        "window": worker.window,
        "labels": dict(worker.labels),
        "resources": {name: _amount(amount) for name, amount in sorted(worker.resources.items())},
        "task types": list(worker.task_types),
        "software": worker.software,
        "remark": worker.remark or None,
    }
    output(options).row({**_row(worker), **more})
    return EXIT_OK


async def drain(options: argparse.Namespace) -> int:
    """antfarm worker drain."""
    limit = None if options.limit is None else seconds_to_wire(flag_seconds("--limit", options.limit))
    async with open_farm(options) as farm:
        request = worker_pb2.DrainWorkerRequest(worker_id=options.worker, limit=limit)
        answer = await farm.connection.call(farm.connection.workers.DrainWorker, request)
    output(options).rows([_row(answer.worker)])
    return EXIT_OK


async def undrain(options: argparse.Namespace) -> int:
    """antfarm worker undrain."""
    async with open_farm(options) as farm:
        request = worker_pb2.UndrainWorkerRequest(worker_id=options.worker)
        answer = await farm.connection.call(farm.connection.workers.UndrainWorker, request)
    output(options).rows([_row(answer.worker)])
    return EXIT_OK
