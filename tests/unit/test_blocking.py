"""Blocking code reaches asyncio through one loop thread: results, errors, interruption and iteration pass through whole."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from antfarm import blocking
from antfarm.blocking import LoopThread, loop_thread


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """A loop thread of the test's own."""
    made = LoopThread()
    yield made
    made.loop.call_soon_threadsafe(made.loop.stop)
    made._thread.join(5)
    assert not made._thread.is_alive()
    made.loop.close()


def test_a_result_comes_back_from_the_other_thread(thread: LoopThread) -> None:
    async def where() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    assert thread.run(where()) == "antfarm-loop"


def test_an_error_comes_back_as_itself(thread: LoopThread) -> None:
    async def fail() -> None:
        raise KeyError("day")

    with pytest.raises(KeyError, match="day"):
        thread.run(fail())


def test_an_error_of_time_is_the_works_own(thread: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "_LOOK_S", 0.01)

    async def late() -> None:
        await asyncio.sleep(0.05)
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        thread.run(late())


def test_ctrl_c_that_does_not_interrupt_the_wait_is_seen_soon() -> None:
    """As when it comes in the instant before the wait begins: here another thread of the process gets the signal."""
    script = """if True:
        import asyncio, signal, threading, time
        from antfarm.blocking import loop_thread

        def interrupt():
            time.sleep(0.2)
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            loop_thread().run(asyncio.sleep(60))
        except KeyboardInterrupt:
            print("interrupted")
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (ended.stdout, ended.stderr) == ("interrupted\n", "")


def test_a_blocking_call_inside_the_loop_is_refused_instead_of_hanging(thread: LoopThread) -> None:
    async def inner() -> int:
        return 1

    async def outer() -> int:
        return thread.run(inner())

    with pytest.raises(RuntimeError, match=r"inside its own event loop; use antfarm\.aio there"):
        thread.run(outer())


def test_items_are_fetched_one_by_one_as_they_are_asked_for(thread: LoopThread) -> None:
    made: list[int] = []

    async def items() -> AsyncIterator[int]:
        for n in range(5):
            made.append(n)
            yield n

    iterator = thread.iterate(items())
    assert made == []
    assert (next(iterator), made) == (0, [0])
    assert (next(iterator), made) == (1, [0, 1])
    assert list(iterator) == [2, 3, 4]


def test_leaving_an_iteration_closes_it(thread: LoopThread) -> None:
    closed = threading.Event()

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    iterator = thread.iterate(items())
    assert next(iterator) == 1
    iterator.close()  # type: ignore[attr-defined]
    assert closed.is_set()


def test_ctrl_c_in_an_iteration_comes_out_as_itself_after_the_iteration_was_closed() -> None:
    script = """if True:
        import asyncio, os, signal
        from antfarm.blocking import loop_thread

        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background has it ignored

        async def items():
            try:
                yield 1
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)  # as one that ends a call
                print("closed")

        try:
            for item in loop_thread().iterate(items()):
                print(item)
        except KeyboardInterrupt:
            print("interrupted")
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (ended.stdout, ended.stderr) == ("1\nclosed\ninterrupted\n", "")


def test_a_step_that_ctrl_c_left_behind_is_cancelled_before_the_iteration_is_closed(
    thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it comes in the instant after the step has gone to the loop."""
    told: list[str] = []
    send = asyncio.run_coroutine_threadsafe

    async def items() -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    def interrupted(*words: Any) -> Any:
        monkeypatch.undo()
        send(*words)
        raise KeyboardInterrupt

    iterator = thread.iterate(items())
    assert next(iterator) == 1
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    assert told == ["cancelled"]


def test_an_error_in_the_middle_of_an_iteration_comes_back(thread: LoopThread) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise ValueError("torn")

    iterator = thread.iterate(items())
    assert next(iterator) == 1
    with pytest.raises(ValueError, match="torn"):
        next(iterator)


def test_many_threads_share_it(thread: LoopThread) -> None:
    async def square(n: int) -> int:
        await asyncio.sleep(0.001)
        return n * n

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: thread.run(square(n)), range(64))) == [n * n for n in range(64)]


def test_a_process_has_one() -> None:
    assert loop_thread() is loop_thread()
