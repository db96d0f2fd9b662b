"""What a task prints, on its way out of the child."""

from __future__ import annotations

from typing import Any

import pytest

from services.worker.child import output
from services.worker.child.output import AttemptLog, AttemptStream
from services.worker.child.protocol import LOG_CHARS_MAX, LOG_RECORDS_MAX, OUT_LOG


class Channel:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def send(self, record: tuple[Any, ...]) -> None:
        kind, seq, text = record
        assert (kind, seq) == (OUT_LOG, 5)
        self.texts.append(text)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(output, "time", made)
    return made


def make() -> tuple[AttemptLog, list[str]]:
    channel = Channel()
    return AttemptLog(channel, 5), channel.texts  # type: ignore[arg-type]


def test_whole_lines_go_at_once_and_the_rest_at_the_end(clock: Clock) -> None:
    log, texts = make()
    for part in ("a", "b\n", "c\nd\ne"):
        log.write(part)
    assert texts == ["ab\n", "c\nd\n"]
    log.close()
    assert texts[-1] == "e"
    log.close()
    assert len(texts) == 3


def test_many_lines_are_put_together_until_the_window_is_over(clock: Clock) -> None:
    log, texts = make()
    for number in range(1000):
        log.write(f"{number}\n")
    assert len(texts) == LOG_RECORDS_MAX
    clock.now += 1
    log.write("next\n")
    assert len(texts) == LOG_RECORDS_MAX + 2
    log.close()
    assert "".join(texts) == "".join(f"{n}\n" for n in range(1000)) + "next\n"


def test_of_too_much_the_end_is_kept_and_said_to_be_the_end(clock: Clock) -> None:
    log, texts = make()
    for number in range(100_000):
        log.write(f"line {number:06}\n")
    log.close()
    assert sum(map(len, texts)) <= 2 * LOG_CHARS_MAX + 100
    assert texts[-1].startswith("... ")
    assert "characters left out ...\n" in texts[-1]
    assert texts[-1].endswith("line 099999\n")
    left_out = int(texts[-1].split()[1].replace(",", ""))
    shipped = sum(map(len, texts)) - len(texts[-1].split("\n")[0]) - 1
    assert left_out + shipped == 12 * 100_000


def test_a_line_without_end_is_bounded(clock: Clock) -> None:
    log, texts = make()
    for _ in range(100):
        log.write("x" * 10_000)
    log.close()
    assert sum(map(len, texts)) <= 3 * LOG_CHARS_MAX + 200


def test_the_stream_writes_to_whoever_runs_and_drops_what_nobody_wrote() -> None:
    log, texts = make()
    current: list[AttemptLog | None] = [None]
    stream = AttemptStream(lambda: current[0], 1)
    assert stream.write("nobody\n") == 7
    current[0] = log
    print("somebody", file=stream)
    assert texts == ["somebody\n"]
    assert (stream.fileno(), stream.encoding, stream.writable(), stream.isatty()) == (1, "utf-8", True, False)


def test_a_task_that_closes_its_output_closes_nobody_elses() -> None:
    log, texts = make()
    stream = AttemptStream(lambda: log, 1)
    with stream:
        print("bye", file=stream, flush=True)
    stream.close()
    print("the next one", file=stream, flush=True)
    assert texts == ["bye\n", "the next one\n"]
    assert not stream.closed
