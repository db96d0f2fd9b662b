"""`antfarm submit`: a job of a task type that workers know, its calls made of ranges, lines or JSON."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import itertools
import json
import math
import re
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antfarm import payload
from antfarm.cli import stdin
from antfarm.cli.job import follow, job_row
from antfarm.cli.option import add_job_flags, declared_options, job_options, job_spec
from antfarm.cli.session import open_farm, output
from antfarm.client.farm import AsyncFarm, left_open
from antfarm.client.job import AsyncJob
from antfarm.client.plan import MapPlan
from antfarm.errors import InvalidArgument
from antfarm.program import EXIT_OK
from antfarm.task import template

TASKS_MAX = 100_000_000
"""Of a job made of ranges; more is a slip of the pen. The farm itself has no such limit."""

Call = tuple[tuple[Any, ...], dict[str, Any]]


def add(commands: Any, flags: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    about = "submit tasks of a type that workers know"
    parser: argparse.ArgumentParser = commands.add_parser(
        "submit",
        parents=[flags],
        help=about,
        description=about,
        epilog="The farm knows a task type by its name alone: options of @af.task in its code (resources, labels, retries, timeouts ...) do "
        "not apply to a type that is submitted by name. Give them here, or give --app to have them read from the code. "
        "example: antfarm submit clouds.download --range day=2021-01-01..2021-03-31 --arg layer=Terra --wait",
    )
    parser.add_argument("type", metavar="TYPE", help="task type, e.g. clouds.download")
    parser.add_argument(
        "--app",
        action="append",
        default=[],
        metavar="MODULE",
        help="module or file that defines the task: it is loaded here, and the options of its @af.task apply; flags change them",
    )
    calls = parser.add_argument_group("calls (one task each; ranges multiply; none of these: one task)")
    calls.add_argument(
        "--range",
        action="append",
        default=[],
        metavar="NAME=FROM..TO",
        help="days or whole numbers, both ends included",
    )
    calls.add_argument("--each-line", metavar="FILE", help="one positional text argument per line")
    calls.add_argument("--stdin", action="store_true", help="as --each-line, from standard input")
    calls.add_argument(
        "--from-json",
        metavar="FILE",
        help="a JSON list of calls, or JSON lines, a call each: an object gives keyword arguments, a list positional ones; "
        "a file of one line that is a list is a list of calls",
    )
    calls.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="keyword argument of all calls; the value as JSON, else as text",
    )
    add_job_flags(parser)
    parser.add_argument("--wait", action="store_true", help="wait for the end; exit code 1 when some task failed")
    parser.add_argument("--progress", action="store_true", help="as --wait, and show progress")
    parser.add_argument("--dry-run", action="store_true", help="show the calls and submit nothing")
    parser.set_defaults(run=submit)


async def submit(options: argparse.Namespace) -> int:
    """antfarm submit."""
    common = dict(map(_assignment, options.arg))
    declared = declared_options(options.type, options.app) if options.app else None
    asked = job_options(options, options.name or options.type, declared)
    calls = await _begun(options)
    spec = job_spec(options, template(options.type, asked, payload.encode_common(common)), options.name)
    if options.dry_run:
        if isinstance(calls, _Ranges):
            print(f"{calls.count:,} tasks", file=sys.stderr, flush=True)
        async for args, kwargs in _each(calls):
            print(payload.encode_call(args, {**common, **kwargs}).decode())
        return EXIT_OK
    plan = MapPlan(
        spec=spec,
        calls=calls,
        encode=lambda call: payload.encode_call(*call),
        keys=None,
        ready=True,
        count=calls.count if isinstance(calls, _Ranges) else None,
    )
    async with open_farm(options) as farm:
        job = await _send(farm, plan, options)
        if options.wait or options.progress:
            if options.output == "table":  # the row follows when it has ended; programs read one row alone
                print(f"antfarm: job {job.job_id} submitted", file=sys.stderr, flush=True)
            return await follow(options, job, progress=options.progress)
        output(options).rows([job_row(await job.status())])
        await farm.tell_unoffered(job, options.type)  # while it waits, the farm itself tells
    return EXIT_OK


async def _send(farm: AsyncFarm, plan: MapPlan, options: argparse.Namespace) -> AsyncJob[Any]:
    writer = farm.writer(plan, options.job_id)
    try:
        await farm.send(plan, writer)
    except asyncio.CancelledError:
        if writer.begun:
            options.parting = left_open(writer)
        raise
    return farm.started(plan, writer)


async def _begun(options: argparse.Namespace) -> Iterable[Call] | AsyncIterable[Call]:
    """The calls. Of standard input the first has come when it returns: nobody means a job of no tasks."""
    calls = _calls(options)
    if not isinstance(calls, AsyncIterator):
        return calls
    async for first in calls:
        return _chain(first, calls)
    raise _empty("-")


async def _chain(first: Call, others: AsyncIterator[Call]) -> AsyncIterator[Call]:
    yield first
    async for other in others:
        yield other


async def _each(calls: Iterable[Call] | AsyncIterable[Call]) -> AsyncIterator[Call]:
    """The calls, whatever they are read from."""
    if isinstance(calls, AsyncIterable):
        async for call in calls:
            yield call
    else:
        for call in calls:
            yield call


def _calls(options: argparse.Namespace) -> Iterable[Call] | AsyncIterator[Call]:
    sources = [bool(options.range), options.each_line is not None, options.stdin, options.from_json is not None]
    if sum(sources) > 1:
        raise InvalidArgument("give only one of --range, --each-line, --stdin and --from-json")
    if options.range:
        ranges = _Ranges(options.range)
        fixed = next((text for text in options.arg if text.partition("=")[0] in ranges.names), None)
        if fixed is not None:
            raise InvalidArgument(f"--arg {fixed}: this name has a --range; give one of the two")
        return ranges
    if options.stdin or options.each_line == "-":
        return (((line,), {}) async for line in stdin.lines())
    if options.each_line is not None:
        return _some(options.each_line, (((line,), {}) for line in read_lines(options.each_line)))
    if options.from_json == "-":
        return _stdin_json()
    if options.from_json is not None:
        path = options.from_json
        return _some(path, map(_call, _json("\n".join(read_lines(path)), path)))
    return [((), {})]


def _some(path: str, calls: Iterator[Call]) -> Iterator[Call]:
    """The calls, if there is one at least: nobody means a job of no tasks."""
    for first in calls:
        return itertools.chain([first], calls)
    raise _empty(path)


def _empty(path: str) -> InvalidArgument:
    return InvalidArgument(f"{'standard input' if path == '-' else path} is empty: there is nothing to submit")


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InvalidArgument(f"--arg {text}: write NAME=VALUE")
    try:
        return name, _read(value, f"--arg {name}")
    except ValueError:
        return name, value


class _Ranges:
    """Every combination of ranges, the last one fastest, made while it is read: nobody knows how many there are to be."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._ranges = [_Range.of(text) for text in texts]
        self.names = [each.name for each in self._ranges]
        twice = next((name for name in self.names if self.names.count(name) > 1), None)
        if twice is not None:
            raise InvalidArgument(f"--range {twice}=...: the same name has two ranges; give it one")
        self.count = math.prod(len(each.numbers) for each in self._ranges)
        if self.count > TASKS_MAX:
            raise InvalidArgument(
                f"--range asks for {self.count:,} tasks; a job that is submitted here has at most {TASKS_MAX:,}: give several smaller jobs, "
                "or tasks that do more each"
            )

    def __iter__(self) -> Iterator[Call]:
        return (((), values) for values in self._combinations(0))

    def _combinations(self, place: int) -> Iterator[dict[str, Any]]:
        if place == len(self._ranges):
            yield {}
            return
        each = self._ranges[place]
        for number in each.numbers:
            for rest in self._combinations(place + 1):
                yield {each.name: each.value(number), **rest}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """Days, by their number, or whole numbers."""

    name: str
    numbers: range
    days: bool = False

    @classmethod
    def of(cls, text: str) -> _Range:
        """The range that the text describes."""
        found = re.fullmatch(r"(\w+)=(\S+?)\.\.(\S+)", text)
        if found is None or not found.group(1).isidentifier():
            raise InvalidArgument(f"--range {text}: write NAME=FROM..TO, e.g. day=2021-01-01..2021-03-31 or n=1..100")
        name, first, last = found.groups()
        days = False
        try:
            begin, end = int(first), int(last)
        except ValueError:
            days = True
            try:
                begin, end = (dt.date.fromisoformat(each).toordinal() for each in (first, last))
            except ValueError:
                raise InvalidArgument(
                    f"--range {text}: {first}..{last} are neither days (2021-01-31) nor whole numbers"
                ) from None
        if end < begin:
            raise InvalidArgument(f"--range {text}: its end lies before its beginning")
        if end - begin >= TASKS_MAX:
            raise InvalidArgument(
                f"--range {text}: {end - begin + 1:,} values; a job that is submitted here has at most {TASKS_MAX:,} tasks: give several "
                "smaller jobs, or tasks that do more each"
            )
        return cls(name=name, numbers=range(begin, end + 1), days=days)

    def value(self, number: int) -> Any:
        """What stands at a place."""
        return dt.date.fromordinal(number) if self.days else number


def read_lines(path: str) -> Iterator[str]:
    """Lines of a file without their ends."""
    if not path:
        raise InvalidArgument("the name of the file is empty; -: standard input")
    try:
        with Path(path).open() as file:
            yield from (line.rstrip("\n") for line in file)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: {getattr(error, 'strerror', None) or error}") from None


async def _stdin_json() -> AsyncIterator[Call]:
    text = "\n".join([line async for line in stdin.lines()])
    for value in _json(text, "-"):
        yield _call(value)


def _json(text: str, path: str) -> Iterator[Any]:
    lines = text.split("\n")  # a text in JSON may hold what else passes for the end of a line
    try:
        whole = _read(text, path)
    except ValueError:
        yield from (_json_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
        return
    if isinstance(whole, list):
        yield from whole
    elif sum(bool(line.strip()) for line in lines) == 1:
        yield whole
    else:
        raise InvalidArgument(f"{path}: not a JSON list (nor JSON lines)")


def _json_line(path: str, number: int, line: str) -> Any:
    try:
        return _read(line, f"{path}: line {number}")
    except ValueError as error:
        raise InvalidArgument(f"{path}: line {number} is not JSON: {error}") from None


def _read(text: str, where: str) -> Any:
    """The value of a text in JSON. ValueError when it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise InvalidArgument(f"{where}: the value is nested too deeply") from None


def _call(value: Any) -> Call:
    if isinstance(value, dict):
        return (), value
    return (tuple(value), {}) if isinstance(value, list) else ((value,), {})
