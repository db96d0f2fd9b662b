"""The words of `antfarm run`: commands with places for arguments, in the manner of GNU parallel.

`{}` is the argument, `{.}` without its extension, `{/}` its file name, `{//}` its directory, `{/.}` its file name without extension, `{#}`
the number of the task from 1, `{1}` `{2}` the arguments of several lists. A command without any place gets the argument at its end.
A list is what stands after `:::`, or the lines of one file after `::::`.
"""

from __future__ import annotations

import itertools
import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from antfarm.cli.submit import read_lines
from antfarm.errors import InvalidArgument

_LIST, _FILES = ":::", "::::"
_LINKED = (":::+", "::::+")
_PLACE = re.compile(r"\{(\d*)(\.|/|//|/\.)?\}|\{#\}")
_SHELL = re.compile(r"[|&;<>()$`\\\"'*?\[\]~#\n]|\s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command before its arguments are known. `shell`: one word that only a shell can read."""

    words: tuple[str, ...]
    shell: bool

    def argv(self, args: Sequence[str], number: int) -> list[str]:
        """The command of one task; `number` counts from 1."""
        if self.shell:
            line = _PLACE.sub(lambda place: shlex.quote(_fill(place, args, number)), self.words[0])
            return ["sh", "-c", line]
        return [_PLACE.sub(lambda place: _fill(place, args, number), word) for word in self.words]


def takes_stdin(words: Sequence[str]) -> bool:
    """True when one of the lists is standard input."""
    mark = ""
    for word in words:
        if word in (_LIST, _FILES):
            mark = word
        elif word == "-" and mark == _FILES:
            return True
    return False


def parse(words: Sequence[str], stdin: Sequence[str] = ()) -> tuple[Command, list[list[str]]]:
    """The command, and its lists: one after each `:::`, one of each file after a `::::`; without any, arguments come from standard input.

    `stdin` are the lines of standard input where one of the lists `takes_stdin`.
    """
    linked = next((word for word in words if word in _LINKED), None)
    if linked is not None:
        raise InvalidArgument(
            f"`{linked}` is not supported: each argument of a list is combined with each of the others; for pairs write one command a line "
            "and run: antfarm run -- sh -c {} :::: FILE"
        )
    parts: list[list[str]] = [[]]
    marks = []
    for word in words:
        if word in (_LIST, _FILES):
            marks.append(word)
            parts.append([])
        else:
            parts[-1].append(word)
    command, *given = parts
    if not command:
        raise InvalidArgument("no command: write e.g. antfarm run -- wc -l {} ::: a.txt b.txt")
    lists: list[list[str]] = []
    for mark, values in zip(marks, given, strict=True):
        if not values:
            raise InvalidArgument(f"nothing stands after `{mark}`")
        lists += [values] if mark == _LIST else (_lines(value, stdin) for value in values)
    if not any(_PLACE.search(word) for word in command):
        command = [f"{command[0]} {{}}"] if len(command) == 1 and _SHELL.search(command[0]) else [*command, "{}"]
    shell = len(command) == 1 and _SHELL.search(_PLACE.sub("", command[0])) is not None
    return Command(words=tuple(command), shell=shell), lists


def _lines(path: str, stdin: Sequence[str]) -> list[str]:
    found = list(stdin if path == "-" else read_lines(path))
    if not found:
        raise InvalidArgument(f"{'standard input' if path == '-' else path} is empty: there is nothing to run")
    return found


def combinations(lists: Sequence[Iterable[str]]) -> Iterator[tuple[str, ...]]:
    """Arguments of each task: every combination of the lists, the last one fastest."""
    return itertools.product(*lists)


def _fill(place: re.Match[str], args: Sequence[str], number: int) -> str:
    if place.group(0) == "{#}":
        return str(number)
    position, part = place.group(1), place.group(2)
    if position and not 0 < int(position) <= len(args):
        raise InvalidArgument(f"{place.group(0)} asks for argument {position}, and there are {len(args)}")
    return _part(args[int(position) - 1] if position else " ".join(args), part)


def _part(value: str, part: str | None) -> str:
    """What a place asks for, cut out of the argument as it is written: it may be an address, or begin with ./"""
    if part is None:
        return value
    if part == ".":
        return posixpath.splitext(value)[0]
    directory, name = posixpath.split(value.rstrip("/") or value)
    if part == "//":
        return directory or "."
    return name if part == "/" else posixpath.splitext(name)[0]
