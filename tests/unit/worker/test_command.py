"""Programs: what is fed to them and taken from them, whatever they do with their pipes."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from antfarm.errors import InvalidArgument
from services.worker.child import command

PATIENCE_S = 20


class Nowhere:
    """A context without Storage."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def save(self, name: str, path: Path) -> Any:
        raise InvalidArgument("no Storage")


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A pump that waits for ever ends with an exception: a signal's handler runs in between."""

    def on_alarm(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(PATIENCE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(script: str, scratch: Path, stdin: str | None = None) -> dict[str, Any]:
    return command.run_command(["sh", "-c", script], stdin=stdin, ctx=Nowhere(scratch))  # type: ignore[arg-type]


def test_a_program_that_writes_more_than_it_reads_is_waited_for_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits until its output is read while its input is full but for a little, which select calls writable."""
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    lines = 60_000
    result = run(f"{sys.executable} -c 'import sys\nfor _ in sys.stdin: print(\"0\" * 99)'", tmp_path, "a\n" * lines)
    assert result["exit_code"] == 0
    assert shown.getvalue() == ("0" * 99 + "\n") * lines


def test_what_goes_into_a_pipe_with_little_room_is_what_there_is_room_for() -> None:
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        while (written := command._feed(write, b"x" * command.STDIN_BYTES)) == command.STDIN_BYTES:
            pass
        assert written < command.STDIN_BYTES
        os.read(read, 4096)
        assert command._feed(write, b"x" * command.STDIN_BYTES) == 4096
        assert command._feed(write, b"x" * command.STDIN_BYTES) == 0
    finally:
        os.close(read)
    assert command._feed(write, b"x" * 7) == 7, "nobody reads: the rest is not wanted"
    os.close(write)


@pytest.mark.parametrize("survivor", ["yes", "while :; do echo x; sleep 0.05; done"])
def test_a_program_that_has_ended_is_given_up_though_what_it_left_behind_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survivor: str
) -> None:
    """The survivor ends of its next line, which nobody can read any more."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert run(f"({survivor}) & exit 0", tmp_path)["exit_code"] == 0


def test_what_a_program_wrote_before_its_end_is_taken_however_late_we_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(command, "EXIT_POLL_S", 0.0)
    text = "".join(f"{number}\n" for number in range(8_000))  # less than a pipe holds
    (tmp_path / "text").write_text(text)
    start = command._start

    def start_and_come_late(*args: Any) -> Any:
        process = start(*args)
        process.wait()
        return process

    monkeypatch.setattr(command, "_start", start_and_come_late)
    run("cat text; yes & exit 0", tmp_path)
    assert shown.getvalue().startswith(text)
