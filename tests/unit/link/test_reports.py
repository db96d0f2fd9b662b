"""Reports on their way: outbox first, frames of bounded size, everything again on a new connection."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import columns
import pytest

from antfarm.link.outbox import Outbox
from antfarm.link.reports import OUTBOX_BYTES_MAX, OUTBOX_KEPT_BYTES, OutcomeParts, Reports
from antfarm.link.session import Session
from antfarm.model import BATCH_BYTES_MAX, LOG_TAIL_BYTES_MAX, VerdictCode
from antfarm.v1 import common_pb2
from antfarm.v1 import report_queue_pb2 as rq


class Kept(Outbox):
    def __init__(self, messages: Sequence[bytes] = ()) -> None:
        self.messages = list(messages)
        self.largest = 0

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.messages))

    def load(self) -> list[bytes]:
        return self.messages

    def append(self, message: bytes) -> None:
        self.messages.append(message)
        self.largest = max(self.largest, self.size_bytes)

    def replace(self, messages: Sequence[bytes]) -> None:
        self.messages = list(messages)


def make(outbox: Kept | None = None, tasks: int = 5000) -> tuple[Session, Reports, Kept]:
    kept = outbox or Kept()
    session = Session(incarnation=b"", dice=random.Random(1), window=1)
    session.assigned("job", 1, [(i, 1) for i in range(tasks)])
    return session, Reports(session, kept), kept


def outcome(index: int, result: bytes = b"1") -> OutcomeParts:
    return OutcomeParts(index=index, attempt=1, ending=rq.ENDING_SUCCEEDED, result=result)


def frames(reports: Reports) -> list[rq.Reports]:
    found = []
    while (frame := reports.next_frame()) is not None:
        found.append(frame.reports)
    return found


def outcomes_in(frame: rq.Reports) -> list[rq.Outcome]:
    """Those of its only group."""
    [group] = frame.outcomes
    return columns.outcomes_in(group)


def indices(found: Sequence[rq.Reports]) -> list[int]:
    return [index for frame in found for group in frame.outcomes for index in group.successes.indices]


async def test_what_is_reported_in_one_turn_is_in_the_outbox_before_it_can_be_sent() -> None:
    _, reports, kept = make()
    reports.connected(columns=True)
    for index in range(3):
        reports.add("job", 1, outcome(index))
    assert kept.messages == []
    assert reports.next_frame() is None
    await asyncio.sleep(0)
    assert len(kept.messages) == 1
    assert indices(frames(reports)) == [0, 1, 2]


async def test_all_that_waits_is_one_frame_up_to_its_limit() -> None:
    _, reports, _ = make()
    reports.connected(columns=True)
    for index in range(40):
        reports.add("job", 1, outcome(index, b"x" * 60_000))
        await asyncio.sleep(0)
    found = frames(reports)
    assert indices(found) == list(range(40))
    assert len(found) == 3
    assert max(frame.ByteSize() for frame in found) <= BATCH_BYTES_MAX


async def test_one_turn_of_large_results_is_split_too() -> None:
    _, reports, kept = make()
    reports.connected(columns=True)
    for index in range(40):
        reports.add("job", 1, outcome(index, b"x" * 60_000))
    await asyncio.sleep(0)
    assert max(map(len, kept.messages)) <= BATCH_BYTES_MAX
    assert indices(frames(reports)) == list(range(40))


async def test_a_new_connection_gets_all_that_is_unacked_and_nothing_else() -> None:
    session, reports, _ = make()
    for index in range(4):
        reports.add("job", 1, outcome(index))
    await asyncio.sleep(0)
    assert reports.next_frame() is None, "not connected"
    reports.connected(columns=True)
    assert indices(frames(reports)) == [0, 1, 2, 3]
    session.judged(VerdictCode.ACCEPTED, [1, 3], 0, 0)
    reports.disconnected()
    reports.connected(columns=True)
    found = frames(reports)
    assert indices(found) == [1, 3]
    assert list(found[0].outcomes[0].successes.report_nos) == [2, 4]


async def test_of_attempts_that_were_forgotten_nothing_is_said_or_kept_any_more() -> None:
    """Neither what is in the outbox, nor what was reported in this turn of the loop and would be written at its end."""
    session, reports, kept = make(tasks=2)
    reports.add("job", 1, outcome(0))
    await asyncio.sleep(0)
    for index in range(2):
        reports.say(rq.Running(job_id="job", epoch=1, index=index, attempt=1))
    reports.add("job", 1, outcome(1))
    assert (reports.settled.is_set(), len(kept.messages)) == (False, 1)
    session.forget_all()
    reports.forget_all()
    await asyncio.sleep(0)
    assert reports.settled.is_set()
    assert kept.messages == []
    reports.connected(columns=True)
    assert frames(reports) == []


async def test_what_was_told_to_wait_is_sent_again_when_its_time_has_come() -> None:
    session, reports, _ = make()
    reports.connected(columns=True)
    reports.add("job", 1, outcome(7))
    await asyncio.sleep(0)
    frames(reports)
    session.judged(VerdictCode.RETRY, [1], 10**9, 0)
    reports.take_due(10**9 - 1)
    assert reports.next_frame() is None
    reports.take_due(10**9)
    assert indices(frames(reports)) == [7]


async def test_the_outbox_stays_small_while_reports_are_acked_and_is_empty_when_nothing_is_owed() -> None:
    session, reports, kept = make(tasks=40_000)
    reports.connected(columns=True)
    number = 0
    for start in range(0, 40_000, 100):
        for index in range(start, start + 100):
            reports.add("job", 1, outcome(index, b"x" * 100))
        await asyncio.sleep(0)
        frames(reports)
        if start:  # always one batch behind
            session.judged(VerdictCode.ACCEPTED, range(number - 99, number + 1), 0, 0)
            reports.note_verdicts()
        number += 100
    assert kept.largest < OUTBOX_BYTES_MAX + OUTBOX_KEPT_BYTES + 2 * session.unacked_bytes + 100 * 250
    assert not reports.settled.is_set()
    session.judged(VerdictCode.ACCEPTED, range(number - 99, number + 1), 0, 0)
    reports.note_verdicts()
    reports.tidy()
    assert reports.settled.is_set()
    assert kept.messages == []


async def test_an_outbox_with_something_foreign_in_it_gives_what_is_ours() -> None:
    _, reports, kept = make()
    reports.add("job", 1, outcome(3))
    await asyncio.sleep(0)
    again, recovered, _ = make(Kept([b"\xff\xff\xff", *kept.messages]), tasks=0)
    recovered.connected(columns=True)
    assert indices(frames(recovered)) == [3]
    assert list(again.held) == [("job", 3, 1, 1)]


async def test_joined_words_are_cut_to_the_limit_of_a_word() -> None:
    _, reports, _ = make()
    reports.connected(columns=True)
    for letter in "aäz":
        reports.say(rq.Running(job_id="job", epoch=1, index=0, attempt=1, log=letter * 30_000))
    [frame] = frames(reports)
    log = frame.running[0].log
    assert len(log.encode()) <= LOG_TAIL_BYTES_MAX
    assert log.endswith("z" * 30_000)


async def test_progress_of_what_has_ended_is_dropped_and_its_log_is_not() -> None:
    _, reports, _ = make()
    reports.connected(columns=True)
    reports.say(rq.Running(job_id="job", epoch=1, index=0, attempt=1, progress=0.5))
    reports.say(rq.Running(job_id="job", epoch=1, index=1, attempt=1, log="bye"))
    reports.add("job", 1, outcome(0))
    reports.add("job", 1, outcome(1))
    await asyncio.sleep(0)
    [frame] = frames(reports)
    assert [(word.index, word.log) for word in frame.running] == [(1, "bye")]


@pytest.mark.parametrize("knows", [False, True])
async def test_what_is_reported_is_the_same_in_columns_and_in_messages_and_after_a_restart(knows: bool) -> None:
    """An orchestrator of an older version knows no columns. What is in the outbox is read by a later process of the worker."""
    failure = common_pb2.Failure(failure_class=common_pb2.FAILURE_CLASS_APP, kind="ValueError", message="no")
    blob = common_pb2.BlobRef(key="k", size_bytes=3, sha256=bytes(32))
    sent: list[OutcomeParts] = [
        {"index": 0, "attempt": 1, "ending": rq.ENDING_SUCCEEDED, "result": b"0", "run_us": 5},
        {"index": 1, "attempt": 1, "ending": rq.ENDING_FAILED, "failure": failure, "run_us": 6},
        {"index": 2, "attempt": 1, "ending": rq.ENDING_SUCCEEDED},
        {"index": 3, "attempt": 1, "ending": rq.ENDING_SUCCEEDED, "result": b"3", "outputs": [blob]},
        {"index": 4, "attempt": 1, "ending": rq.ENDING_RELEASED, "never_started": True, "app_failures": 2},
    ]
    _, reports, kept = make()
    reports.connected(columns=knows)
    for parts in sent:
        reports.add("job", 1, parts)
    await asyncio.sleep(0)
    [frame] = frames(reports)
    assert list(frame.outcomes[0].successes.indices) == ([0, 2] if knows else [])
    wanted = [rq.Outcome(report_no=number, **parts) for number, parts in enumerate(sent, 1)]
    assert sorted(outcomes_in(frame), key=lambda one: one.report_no) == wanted
    again, recovered, _ = make(Kept(kept.messages), tasks=0)
    recovered.connected(columns=not knows)
    [frame] = frames(recovered)
    found = outcomes_in(frame)
    assert sorted(one.report_no for one in found) == [1, 2, 3, 4, 5], "numbers are the new session's"
    for one in (*found, *wanted):
        one.report_no = 0
    assert sorted(found, key=lambda one: one.index) == wanted
    assert sorted(again.held) == [("job", index, 1, 1) for index in range(5)]
