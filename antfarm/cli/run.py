"""`antfarm run`: GNU parallel on a farm. Without an address the farm is one of the user's own on this machine."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

from antfarm import builtin, payload, wire
from antfarm.cli import stdin, words
from antfarm.cli.option import add_job_flags, job_options, job_spec
from antfarm.cli.output import coloured
from antfarm.cli.progress import ProgressLine
from antfarm.cli.session import exit_code, given_address, open_farm
from antfarm.client.farm import AsyncFarm
from antfarm.client.job import AsyncJob, Order
from antfarm.client.plan import MapPlan
from antfarm.errors import AntFarmError, InvalidArgument, JobNotFound
from antfarm.model import JobStatus, TaskResult, TaskState
from antfarm.program import EXIT_OK
from antfarm.task import template
from antfarm.text import escape, lines

_INPUT_ERRORS = (InvalidArgument, OSError, UnicodeEncodeError)
"""What reading the arguments may raise, and writing the outputs. A Conflict, of a job that is not ours, is another error."""


def add(commands: Any, flags: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    about = "run a command for each argument, on all workers"
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        parents=[flags],
        help=about,
        description=about,
        usage="antfarm run [options] -- COMMAND [WORDS with {}] [::: ARGUMENTS ... | :::: FILES ...]",
        epilog="Places: {} the argument, {.} without extension, {/} file name, {//} directory, {/.} file name without extension, {#} number, "
        "{1} {2} arguments of several lists. `:::` begins a list, `::::` files whose lines are a list each (-: standard input); several are combined. "
        "Without them each line of standard input is an argument. A command of one "
        "word with blanks or shell characters is run by sh. Exit code 1 when some command failed. "
        "example: antfarm run -- 'gzip -c {} | wc -c' ::: *.txt",
    )
    parser.add_argument("-k", "--keep-order", action="store_true", help="print outputs in the order of the arguments")
    parser.add_argument("--tag", action="store_true", help="begin each line with the argument")
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="directory on the workers; default: this one on a farm of one's own, else scratch space",
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="hand over this variable")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--no-progress", action="store_true", help="show no progress")
    add_job_flags(parser)
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> int:
    """antfarm run."""
    given = options.words[1:] if options.words[:1] == ["--"] else options.words
    command, lists = words.parse(given, await _lines(given))
    env = dict(map(_variable, options.env))
    name = options.name or _name(command)
    spec = job_spec(options, template(builtin.COMMAND, job_options(options, f"run-{os.getpid()}")), name)
    if options.dry_run:
        number = 0
        async for args in _arguments(lists):
            number += 1
            print(escape(shlex.join(command.argv(args, number))))
        return EXIT_OK
    cwd = options.workdir or (None if given_address(options) else os.getcwd())
    noted = _Noted()
    numbers = itertools.count(1)

    def encode(args: tuple[str, ...]) -> bytes:
        noted.add(" ".join(args))
        argv = command.argv(args, next(numbers))
        return payload.encode_call((), builtin.command_call(argv, cwd=cwd, env=env))

    calls: Any = words.combinations(lists) if lists else _arguments(lists)
    plan = MapPlan(spec=spec, encode=encode, calls=calls, keys=noted.texts, ready=bool(lists))
    async with open_farm(options, embedded=True) as farm:
        return await _Run(farm, plan, options, noted).end()


def _name(command: words.Command) -> str:
    """The command as the name of its job, cut to what a name may have whatever its letters take."""
    return shlex.join(command.words).encode("utf-8", "replace")[:200].decode("utf-8", "ignore")


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name:
        raise InvalidArgument(f"--env {text}: write NAME, or NAME=VALUE")
    if not equals and name not in os.environ:
        raise InvalidArgument(f"--env {name}: it is not set here; set it, or write --env {name}=VALUE")
    return name, value if equals else os.environ[name]


async def _lines(given: Sequence[str]) -> list[str]:
    """Standard input, where one of the lists is that."""
    return [line async for line in stdin.lines()] if words.takes_stdin(given) else []


async def _arguments(lists: list[list[str]]) -> AsyncIterator[tuple[str, ...]]:
    """Those of each task; without lists the lines of standard input, as they come."""
    for args in words.combinations(lists) if lists else ():
        yield args
    if not lists:
        async for line in stdin.lines():
            yield (line,)


class _Noted:
    """The arguments of the tasks, as far as they are read."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._more = asyncio.Event()

    def add(self, text: str) -> None:
        """The arguments of the next task."""
        self.texts.append(text)
        self._more.set()

    async def read(self, index: int) -> None:
        """Return when those of a task are read: a job that was there before (--job-id) has outcomes of what comes later here."""
        while index >= len(self.texts):
            self._more.clear()
            await self._more.wait()


class _Run:
    """One run: sends the commands, prints what comes back, cancels the job when it is interrupted, or cannot go on."""

    def __init__(self, farm: AsyncFarm, plan: MapPlan, options: argparse.Namespace, noted: _Noted) -> None:
        self._farm = farm
        self._options = options
        self._noted = noted
        self._writer = farm.writer(plan, options.job_id)
        self._sending = asyncio.create_task(farm.send(plan, self._writer))
        self._line = ProgressLine(wanted=not options.no_progress and sys.stderr.isatty())
        self._terminal = sys.stdout.isatty()

    async def end(self) -> int:
        """Print all outputs; the exit code."""
        try:
            await self._created()
            job: AsyncJob[Any] = AsyncJob(self._farm.connection, self._writer.job_id)
            watching = asyncio.create_task(self._watch(job))
            try:
                await self._print_all(job)
                status = await watching
            finally:
                watching.cancel()
        except (asyncio.CancelledError, BrokenPipeError):  # Ctrl-C; `| head`: nobody reads what is left
            self._line.clear()
            await asyncio.shield(self._cancel("interrupted"))
            raise
        except _INPUT_ERRORS:
            if self._writer.begun:
                await self._cancel("ended by an error")
            raise
        finally:
            self._sending.cancel()
            self._line.clear()
        return exit_code(status)

    async def _print_all(self, job: AsyncJob[Any]) -> None:
        """Print outputs until the job has ended and all is sent; raise at once what keeps the input from being read on, for then it does not end."""
        printing = asyncio.create_task(self._print(job))
        try:
            await asyncio.wait({printing, self._sending}, return_when=asyncio.FIRST_EXCEPTION)
            if self._sending.done() and isinstance(self._sending.exception(), _INPUT_ERRORS):
                self._sending.result()
            await printing
            await self._sending
        finally:
            printing.cancel()

    async def _cancel(self, cause: str) -> None:
        """Cancel the job if there is one, and note what to say of it."""
        job_id = self._writer.job_id
        self._sending.cancel()
        try:
            await AsyncJob[Any](self._farm.connection, job_id).cancel(cause)
        except (JobNotFound, InvalidArgument):
            return  # it had not left yet, or was refused
        except AntFarmError as error:
            self._options.parting = self._options.left = (
                f"job {job_id} could not be cancelled ({error}): `antfarm job cancel {job_id}`"
            )
        else:
            again = f" (`antfarm job retry {job_id}` repeats it)" if given_address(self._options) else ""
            self._options.parting = self._options.left = f"job {job_id} was cancelled{again}"

    async def _created(self) -> None:
        """Wait until there is a job, or sending failed."""
        created = asyncio.create_task(self._writer.created.wait())
        await asyncio.wait({created, self._sending}, return_when=asyncio.FIRST_COMPLETED)
        created.cancel()
        if self._sending.done():
            self._sending.result()

    async def _watch(self, job: AsyncJob[Any]) -> JobStatus:
        status = None
        async for status in job.watch():
            self._line.update(status)
        return status if status is not None and status.state.terminal else await job.status()

    async def _print(self, job: AsyncJob[Any]) -> None:
        order = Order()
        async for batch in job.batches():
            for message in order.take(batch) if self._options.keep_order else batch:
                result = wire.result_from_wire(message)
                if result.state is TaskState.SUCCEEDED:
                    result_bytes = await self._farm.connection.load(result.result)
                    value = payload.decode_result(result_bytes)
                    tag = escape(await self._name(result.index)) if self._options.tag else None
                    self._show(tag, str(value.get("stdout", "")), str(value.get("stderr", "")))
                else:
                    self._show_failure(await self._name(result.index), result)

    async def _name(self, index: int) -> str:
        """The arguments of a task; its id where the input ended before it, or the job takes no more of it."""
        texts = self._noted.texts
        if index >= len(texts):
            reading = asyncio.create_task(self._noted.read(index))
            await asyncio.wait({reading, self._sending}, return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
        return texts[index] if index < len(texts) else f"{self._writer.job_id}/{index}"

    def _show(self, tag: str | None, stdout: str, stderr: str) -> None:
        self._line.clear()
        for text, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
            if not text:
                continue
            shown = lines(text) if stream.isatty() else text
            if tag is not None:
                shown = "".join(f"{tag}\t{line}" for line in shown.splitlines(keepends=True))
            stream.write(shown)
            stream.flush()

    def _show_failure(self, name: str, result: TaskResult) -> None:
        self._line.clear()
        failure = result.failure
        if failure is not None and failure.log_tail:
            sys.stderr.write(lines(failure.log_tail).rstrip("\n") + "\n")
        said = f"{failure.kind}: {failure.message}" if failure is not None else result.state.name.lower()
        text = f"antfarm run: {escape(name)}: {escape(said)}"
        sys.stderr.write(f"\x1b[31m{text}\x1b[0m\n" if coloured(sys.stderr) else text + "\n")
        sys.stderr.flush()
