"""Standard input as it comes, read in a thread of its own, so that a command does other things meanwhile and Ctrl-C ends it at once.

The thread is a daemon: nothing can end a read that waits, and nobody waits for it at the end of the process. It reads the file descriptor, for a
thread that holds the lock of `sys.stdin` at that time would make the interpreter abort.
"""

from __future__ import annotations

import asyncio
import codecs
import io
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TextIO

from antfarm.errors import InvalidArgument

PIECES_MAX = 16
"""Pieces that are read before somebody takes them."""
_LINES_BYTES = 1 << 16


async def pieces(bytes_max: int) -> AsyncIterator[bytes]:
    """What comes, in pieces of up to that many bytes, to its end. OSError when it cannot be read."""
    feed = _Feed(_stdin().fileno(), bytes_max)
    threading.Thread(target=feed.run, name="stdin", daemon=True).start()
    while piece := await feed.take():
        yield piece


async def lines() -> AsyncIterator[str]:
    """Lines without their ends. InvalidArgument for what is no text."""
    stdin = _stdin()
    decode = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder(stdin.encoding)(stdin.errors or "strict"), True
    ).decode
    begun: list[str] = []
    try:
        async for piece in pieces(_LINES_BYTES):
            first, *others = decode(piece).split("\n")
            begun.append(first)
            for other in others:
                yield "".join(begun)
                begun = [other]
        begun.append(decode(b"", True))
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"standard input: {error}") from None
    if last := "".join(begun):
        yield last


def _stdin() -> TextIO:
    if sys.stdin is None:
        raise InvalidArgument("standard input is closed: give a file")
    return sys.stdin


class _Feed:
    """Hands pieces from the thread that reads them to the loop."""

    def __init__(self, number: int, bytes_max: int) -> None:
        self._number = number
        self._bytes_max = bytes_max
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(PIECES_MAX)
        self._pieces: asyncio.Queue[bytes | OSError] = asyncio.Queue()

    def run(self) -> None:
        """The thread: read to the end, or an error, and never more than PIECES_MAX that nobody has taken."""
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            while True:
                self._room.acquire()
                piece = self._read()
                self._loop.call_soon_threadsafe(self._hand, piece)
                if not piece or isinstance(piece, OSError):
                    return

    def _hand(self, piece: bytes | OSError) -> None:
        # asyncio.run cancels the main task from within the signal's handler, at whatever step of this: who is about to be woken may be cancelled by then.
        with suppress(asyncio.InvalidStateError):
            self._pieces.put_nowait(piece)

    def _read(self) -> bytes | OSError:
        try:
            return os.read(self._number, self._bytes_max)
        except OSError as error:
            return error

    async def take(self) -> bytes:
        """The next piece, empty at the end."""
        piece = await self._pieces.get()
        self._room.release()
        if isinstance(piece, OSError):
            raise piece
        return piece
