"""How programs begin and end: one line for mistakes, exit codes, signals, log lines that cannot be forged, word to systemd."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from antfarm import errors, program

ROOT = Path(__file__).resolve().parents[2]


def run_script(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose main coroutine has this body."""
    return subprocess.run(
        [sys.executable, "-c", script(body)],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def script(body: str) -> str:
    """A program whose main coroutine has this body."""
    return (
        "import asyncio, logging, os, sys\nfrom antfarm import errors, program\n"
        f"async def main():\n{textwrap.indent(textwrap.dedent(body), '    ')}\nprogram.run(main, program='services.example')\n"
    )


# ---- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("return 0", 0, ""),
        ("return 1", 1, ""),
        (
            "raise errors.InvalidArgument('port 7 is taken;\\nchoose another')",
            2,
            "services.example: port 7 is taken; choose another\n",
        ),
        ("raise errors.Unavailable('nobody answers at x:1')", 3, "services.example: nobody answers at x:1\n"),
        ("raise KeyboardInterrupt", 4, "services.example: interrupted\n"),
    ],
    ids=["ok", "tasks failed", "usage", "cannot connect", "interrupted"],
)
def test_exit_codes_and_their_one_line(body: str, code: int, line: str) -> None:
    done = run_script(body)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", line)


@pytest.mark.slow
def test_a_defect_shows_its_traceback() -> None:
    done = run_script("raise ZeroDivisionError('ours')")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.rstrip().endswith("ZeroDivisionError: ours")


@pytest.mark.slow
def test_programs_run_on_uvloop() -> None:
    assert run_script("print(type(asyncio.get_running_loop()).__module__)\nreturn 0").stdout == "uvloop\n"


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_asks_to_drain_and_a_second_ends_at_once(number: signal.Signals) -> None:
    body = """
        stop = program.stop_on_signals()
        program.ready("ready on here:1")
        await stop.wait()
        print("draining", flush=True)
        await asyncio.sleep(float(sys.argv[1]))
        return 0
    """
    for drain_s, code in [("0", 0), ("60", 4)]:
        with subprocess.Popen(
            [sys.executable, "-c", script(body), drain_s], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready on here:1\n"
            child.send_signal(number)
            assert child.stdout.readline() == "draining\n"
            if code:
                child.send_signal(number)
            assert child.wait(10) == code


# ---- systemd ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket that listens as systemd does."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield receiver


def test_ready_prints_the_line_and_tells_systemd(supervisor: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    program.ready("storage ready on 127.0.0.1:50052")
    assert capsys.readouterr().out == "storage ready on 127.0.0.1:50052\n"
    assert supervisor.recv(100) == b"READY=1"


def test_abstract_sockets_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"antfarm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        program.notify("STOPPING=1")
        assert receiver.recv(100) == b"STOPPING=1"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    program.notify("READY=1")


def test_a_supervisor_that_is_gone_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    program.notify("READY=1")
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_a_supervisor_that_does_not_listen_stops_nobody(
    supervisor: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2_000):  # far more than its socket can hold
        program.notify("WATCHDOG=1")
    assert "could not be notified of WATCHDOG=1" in caplog.text
    assert supervisor.recv(100) == b"WATCHDOG=1"


async def test_the_watchdog_is_fed_twice_in_its_interval(
    supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    feeding = asyncio.ensure_future(program.watchdog())
    supervisor.setblocking(False)
    start = time.monotonic()
    beats = [await asyncio.wait_for(_receive(supervisor), 5) for _ in range(5)]
    assert beats == [b"WATCHDOG=1"] * 5
    assert time.monotonic() - start >= 0.19
    feeding.cancel()


async def _receive(receiver: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(receiver, 100)


@pytest.mark.parametrize(
    ("usec", "pid"), [(None, None), ("", None), ("1000", "1")], ids=["not asked", "empty", "meant for another process"]
)
async def test_the_watchdog_ends_where_none_is_asked_for(
    usec: str | None, pid: str | None, supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in [("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)]:
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    await asyncio.wait_for(program.watchdog(), 5)
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.recv(100)


async def test_a_program_that_says_it_is_stuck_is_not_kept_alive(
    supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    asked = 0

    async def alive() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    feeding = asyncio.ensure_future(program.watchdog(alive))
    supervisor.setblocking(False)
    assert await asyncio.wait_for(_receive(supervisor), 5) == b"WATCHDOG=1"
    assert asked == 3
    feeding.cancel()


# ---- log lines -------------------------------------------------------------------------------------------------------

HOSTILE = "day\r\n12:00:00 ERROR   forged\x1b[2J\x00\u202e\x7f end"


def _log(log_format: str, body: str) -> str:
    done = run_script(f"program.setup_logging('{log_format}', 'info')\n{body}\nreturn 0")
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_text_lines_cannot_be_forged_by_what_tasks_say() -> None:
    text = _log("text", f"logging.getLogger('x').info('task %s', {HOSTILE!r})")
    (line,) = text.splitlines()
    assert line.endswith(r"INFO    x: task day\r\n12:00:00 ERROR   forged\x1b[2J\x00\u202e\x7f end")


@pytest.mark.slow
def test_tracebacks_stay_readable_and_their_texts_harmless() -> None:
    body = f"try:\n    raise ValueError({HOSTILE!r})\nexcept ValueError:\n    logging.getLogger('x').exception('it failed')"
    text = _log("text", body)
    lines = text.splitlines()
    assert lines[0].endswith("ERROR   x: it failed")
    assert lines[1] == "  | Traceback (most recent call last):"
    assert all(line.startswith("  | ") for line in lines[1:])
    assert lines[-1].startswith("  | 12:00:00 ERROR   forged")
    assert all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.slow
def test_json_lines_hold_the_same_and_parse() -> None:
    body = f"try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('x').exception('task %s', {HOSTILE!r})"
    (line,) = _log("json", body).splitlines()
    entry = json.loads(line)
    assert entry["message"] == "task " + HOSTILE
    assert (entry["level"], entry["logger"]) == ("ERROR", "x")
    assert entry["exception"].endswith("ZeroDivisionError: division by zero")
    assert time.strptime(entry["time"], "%Y-%m-%dT%H:%M:%S%z")


@pytest.mark.slow
def test_levels_leave_out_what_is_below_them() -> None:
    text = _log(
        "text",
        "[logging.getLogger('x').log(n, 'level %d', n) for n in (10, 20, 30)]\nlogging.getLogger('grpc').info('chatter')",
    )
    assert [line.split(": ")[-1] for line in text.splitlines()] == ["level 20", "level 30"]


def test_errors_of_two_families_differ() -> None:
    assert not issubclass(errors.Weather, errors.UserError)
    assert not issubclass(errors.UserError, errors.Weather)
