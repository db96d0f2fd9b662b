"""What every subcommand that talks to a farm needs: its address, its flags, its connection, the job or task that a word means."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from antfarm.cli.output import FORMATS, Output
from antfarm.client.farm import AsyncFarm
from antfarm.client.opening import connect_async
from antfarm.duration import seconds
from antfarm.errors import InvalidArgument
from antfarm.model import JobState, JobStatus
from antfarm.program import EXIT_CANCELLED, EXIT_OK, EXIT_TASKS_FAILED

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Where `antfarm up` serves."""


def check_limit(limit: int) -> None:
    """Refuse a --limit that means nothing."""
    if limit < 0:
        raise InvalidArgument(f"--limit {limit}: give 1 or more, or 0 for all")


def flag_seconds(flag: str, text: str) -> float:
    """The length of time that a flag was given; InvalidArgument names the flag."""
    try:
        return seconds(text)
    except InvalidArgument as error:
        raise InvalidArgument(f"{flag}: {error}") from None


def add_farm_flags(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Flags of every subcommand; they may also stand before it. `again`: the subcommand's, which leave the former alone where not given."""
    group = parser.add_argument_group("farm")

    def default(value: str) -> str:
        return argparse.SUPPRESS if again else value

    group.add_argument(
        "-c",
        "--connect",
        metavar="HOST:PORT",
        default=default(""),
        help=f"the orchestrator; default: ANTFARM_ADDRESS, else the farm of this user that runs, else {DEFAULT_ADDRESS}",
    )
    group.add_argument(
        "--output", choices=FORMATS, default=default("table"), help="form of what is shown; default: table"
    )
    for name, about in (("cert", "certificate"), ("key", "its private key"), ("ca", "CA of the farm")):
        variable = f"ANTFARM_TLS_{name.upper()}"
        group.add_argument(
            f"--tls-{name}",
            metavar="FILE",
            default=default(os.environ.get(variable, "")),
            help=f"{about} (PEM); default: {variable}",
        )


def given_address(options: argparse.Namespace) -> str:
    """The address that the user gave, "" without one."""
    return options.connect or os.environ.get("ANTFARM_ADDRESS", "")


def find_address(options: argparse.Namespace) -> str:
    """The address that the user gave, or that of the farm that most probably is meant."""
    from antfarm.client.embedded import running_address

    return given_address(options) or running_address() or DEFAULT_ADDRESS


@asynccontextmanager
async def open_farm(options: argparse.Namespace, *, embedded: bool = False) -> AsyncIterator[AsyncFarm]:
    """The farm that is meant; with `embedded` one of the user's own when no address was given."""
    address = given_address(options) if embedded else find_address(options)
    farm = await connect_async(
        address or None, tls_cert=options.tls_cert, tls_key=options.tls_key, tls_ca=options.tls_ca, patience=60
    )
    async with farm:
        yield farm


def output(options: argparse.Namespace) -> Output:
    """Where rows go."""
    return Output(options.output)


_INDEX = re.compile(r"[0-9]{1,19}")


async def find_task(farm: AsyncFarm, word: str) -> tuple[str, int]:
    """(job id, index) of JOB/INDEX; the job by any selector; a number alone means the last job."""
    selector, _, number = word.rpartition("/")
    if not _INDEX.fullmatch(number):
        raise InvalidArgument(f"{word!r} is not a task: give JOB/INDEX, e.g. last/3")
    return (await farm.find(selector or "last")).job_id, int(number)


def exit_code(status: JobStatus) -> int:
    """What a command says about a job that has ended."""
    return {JobState.SUCCEEDED: EXIT_OK, JobState.CANCELLED: EXIT_CANCELLED}.get(status.state, EXIT_TASKS_FAILED)
