"""The child's end of its pipe: records are whole whoever sends them, and from wherever."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import msgpack
import pytest

from services.worker.child import channel as module
from services.worker.child.channel import Channel
from services.worker.child.protocol import OUT_LOG, PAGE_BYTES

PATIENCE_S = 10


class Pipe:
    """A channel, and what came out of it."""

    def __init__(self) -> None:
        page = os.memfd_create("page")
        os.ftruncate(page, PAGE_BYTES)
        self._in = os.pipe()
        self._read, self._out = os.pipe()
        os.set_blocking(self._read, False)
        self.channel = Channel(self._in[0], self._out, page)
        self._unpacker = msgpack.Unpacker()

    def records(self) -> list[str]:
        """The texts of what was sent since."""
        self._unpacker.feed(os.read(self._read, 1 << 20))
        return [text for _, _, text in self._unpacker]

    def close(self) -> None:
        for fd in (*self._in, self._read, self._out):
            os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A send that waits for itself ends with an exception."""

    def on_alarm(*_: object) -> None:
        raise TimeoutError("it waits for itself")

    made = Pipe()
    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(PATIENCE_S)
    yield made
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    made.close()


def interrupted(monkeypatch: pytest.MonkeyPatch, handlers: list[list[str]], pipe: Pipe) -> None:
    """Each of the first writes takes one byte, and then a handler comes and says these lines."""
    write = os.write

    def write_a_part(fd: int, data: bytes) -> int:
        if not handlers:
            return write(fd, data)
        written = write(fd, data[:1])
        for text in handlers.pop(0):
            pipe.channel.send((OUT_LOG, 1, text))
        return written

    monkeypatch.setattr(module.os, "write", write_a_part)


def test_what_a_signal_handler_sends_while_its_thread_sends_comes_behind_it(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, [["handler 1", "handler 2"], [], ["handler 3"]], pipe)
    pipe.channel.send((OUT_LOG, 1, "task 1"))
    assert pipe.records() == ["task 1", "handler 1", "handler 2", "handler 3"]
    pipe.channel.send((OUT_LOG, 1, "task 2"))
    assert pipe.records() == ["task 2"]


def test_of_too_much_that_handlers_say_while_the_agent_does_not_read_the_newest_stays(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [str(number) for number in range(module.LATE_MAX + 10)]
    interrupted(monkeypatch, [lines], pipe)
    pipe.channel.send((OUT_LOG, 1, "task"))
    assert pipe.records() == ["task", *lines[10:]]


def test_a_handler_that_raises_leaves_a_channel_that_sends(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_before(fd: int, data: bytes) -> int:
        monkeypatch.undo()
        raise KeyError("of the handler")

    monkeypatch.setattr(module.os, "write", raise_before)
    with pytest.raises(KeyError):
        pipe.channel.send((OUT_LOG, 1, "lost"))
    pipe.channel.send((OUT_LOG, 1, "next"))
    assert pipe.records() == ["next"]
