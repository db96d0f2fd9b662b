"""Standard input comes in pieces and lines as it is written, and an end is an end."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from antfarm.cli import stdin
from antfarm.errors import InvalidArgument


class Pipe:
    """What is written to it comes from standard input."""

    def __init__(self, number: int) -> None:
        self._number = number

    def write(self, data: bytes) -> None:
        os.write(self._number, data)

    def close(self) -> None:
        """Once or again."""
        if self._number >= 0:
            os.close(self._number)
        self._number = -1


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        made = Pipe(writing)
        yield made
        made.close()
        for thread in threading.enumerate():
            if thread.name == "stdin":  # reads on to the end, by a number that the next test's pipe will have
                thread.join()


async def test_lines_come_as_they_are_written_and_the_last_one_needs_no_end(pipe: Pipe) -> None:
    found = stdin.lines()
    pipe.write(b"one\n\ntw")
    assert [await anext(found), await anext(found)] == ["one", ""]
    pipe.write(b"o\r\nzw\xc3")
    assert await anext(found) == "two"
    pipe.write(b"\xb6lf\nend")
    pipe.close()
    assert [line async for line in found] == ["zw\xf6lf", "end"]


async def test_nothing_is_no_line(pipe: Pipe) -> None:
    pipe.close()
    assert [line async for line in stdin.lines()] == []


async def test_what_is_no_text_is_refused_in_one_line(pipe: Pipe) -> None:
    pipe.write(b"\xff\n")
    pipe.close()
    with pytest.raises(InvalidArgument, match=r"^standard input: 'utf-8' codec can't decode byte 0xff"):
        await anext(stdin.lines())


async def test_no_more_is_read_than_somebody_takes(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, full, read = 0, asyncio.Event(), os.read
    loop = asyncio.get_running_loop()

    def noted(number: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == stdin.PIECES_MAX:
            loop.call_soon_threadsafe(full.set)
        return read(number, size)

    monkeypatch.setattr(os, "read", noted)
    pipe.write(b"x" * 100)
    pipe.close()
    found = stdin.pieces(1)
    taken = [await anext(found)]
    await asyncio.wait_for(full.wait(), 10)
    assert reads <= stdin.PIECES_MAX + 1
    taken += [piece async for piece in found]
    assert taken == [b"x"] * 100
    assert reads == 101


async def test_an_input_that_cannot_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    number = os.open(tmp_path, os.O_RDONLY)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", type("Directory", (), {"fileno": lambda self: number})())
        with pytest.raises(IsADirectoryError):
            await anext(stdin.pieces(10))
        patch.setattr(sys, "stdin", None)
        with pytest.raises(InvalidArgument, match=r"^standard input is closed: give a file$"):
            await anext(stdin.pieces(10))
    os.close(number)
