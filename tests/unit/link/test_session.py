"""The worker's session, decided without a socket."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from antfarm.link.session import (
    LEASE_DEFAULT_NS,
    RECONNECT_MIN_NS,
    UNACKED_BYTES_MAX,
    UNACKED_MAX,
    Session,
    Token,
)
from antfarm.model import SECOND_NS, VerdictCode

ACCEPTED, DUPLICATE, SUPERSEDED, FENCED, UNKNOWN, NOT_OWNER, RETRY = VerdictCode


def make(window: int = 4) -> Session:
    return Session(incarnation=b"i" * 16, dice=random.Random(7), window=window)


def attach(session: Session, epoch: int = 1, now_ns: int = 0) -> bool:
    return session.welcomed(epoch=epoch, heartbeat_ns=3 * SECOND_NS, lease_ns=12 * SECOND_NS, now_ns=now_ns)


def hold(session: Session, count: int, epoch: int = 1) -> list[Token]:
    assert session.assigned("job", epoch, [(i, 1) for i in range(count)]) is None
    return [("job", i, epoch, 1) for i in range(count)]


@pytest.mark.parametrize("code", [ACCEPTED, DUPLICATE, SUPERSEDED, FENCED, UNKNOWN])
def test_a_final_verdict_forgets_the_report_and_its_token(code: VerdictCode) -> None:
    session = make()
    [token, other] = hold(session, 2)
    number = session.report(token, "report", 10)
    assert session.judged(code, [number], 0, 0) is False
    assert list(session.held) == [other]
    assert session.unacked() == []
    assert session.get(number) is None


def test_a_retry_verdict_keeps_the_report_and_has_it_sent_again_after_the_pause() -> None:
    session = make()
    [token] = hold(session, 1)
    number = session.report(token, "report", 10)
    session.judged(RETRY, [number, 99], 5 * SECOND_NS, SECOND_NS)
    assert session.next_due_ns == 6 * SECOND_NS
    assert session.due(6 * SECOND_NS - 1) == []
    assert session.due(6 * SECOND_NS) == [number]
    assert session.next_due_ns is None
    assert session.get(number) == "report"


def test_not_owner_keeps_everything_and_asks_to_hang_up() -> None:
    session = make()
    [token] = hold(session, 1)
    number = session.report(token, "report", 10)
    assert session.judged(NOT_OWNER, [number], 0, 0) is True
    assert session.unacked() == [(number, "report")]


@pytest.mark.parametrize("code", [0, 8, 1000])
def test_a_verdict_of_a_newer_protocol_keeps_the_report_for_the_next_session(code: int) -> None:
    session = make()
    [token] = hold(session, 1)
    number = session.report(token, "report", 10)
    assert session.judged(code, [number], 0, 0) is False
    assert attach(session)
    assert session.unacked() == [(number, "report")]


def test_verdicts_repeated_or_foreign_change_nothing() -> None:
    session = make()
    [token, other] = hold(session, 2)
    number = session.report(token, "report", 10)
    session.report(other, "other", 7)
    session.judged(ACCEPTED, [number, number, 55], 0, 0)
    session.judged(RETRY, [number], 0, 0)
    assert session.unacked_bytes == 7
    assert session.next_due_ns is None


def test_a_report_of_what_is_not_held_or_is_reported_already_is_dropped() -> None:
    session = make()
    [token] = hold(session, 1)
    assert session.report(("job", 5, 1, 1), "foreign", 1) == 0
    assert session.report(token, "first", 1) == 1
    assert session.report(token, "second", 1) == 0
    assert session.unacked() == [(1, "first")]


def test_what_is_revoked_at_attach_goes_with_its_report() -> None:
    session = make()
    tokens = hold(session, 3)
    session.report(tokens[0], "report", 10)
    assert session.forget([tokens[0], tokens[1], ("foreign", 0, 1, 1)]) == tokens[:2]
    assert list(session.held) == [tokens[2]]
    assert (session.unacked_count, session.unacked_bytes) == (0, 0)
    assert session.report(tokens[0], "late", 1) == 0


def test_an_assignment_repeated_is_taken_once_and_one_of_a_lower_epoch_never() -> None:
    session = make()
    attach(session, epoch=5)
    assert session.assigned("job", 5, [(1, 1), (2, 1)]) is None
    assert session.assigned("job", 5, [(2, 1), (3, 1), (3, 1), (2, 2)]) == [1, 3]
    assert session.assigned("job", 4, [(9, 1)]) == []
    assert session.assigned("job", 6, [(1, 1)]) is None
    assert session.max_epoch_seen == 6
    assert set(session.held) == {
        ("job", 1, 5, 1),
        ("job", 2, 5, 1),
        ("job", 3, 5, 1),
        ("job", 2, 5, 2),
        ("job", 1, 6, 1),
    }


def test_a_welcome_of_a_lower_epoch_is_refused_and_a_higher_one_keeps_what_is_held() -> None:
    session = make()
    assert attach(session, epoch=3)
    hold(session, 2, epoch=3)
    assert not attach(session, epoch=2)
    assert session.max_epoch_seen == 3
    assert attach(session, epoch=4)
    assert len(session.held) == 2


@pytest.mark.parametrize(("size", "count"), [(1, UNACKED_MAX), (UNACKED_BYTES_MAX // 4, 4)])
def test_the_window_closes_when_too_much_is_unacked_and_opens_at_half(size: int, count: int) -> None:
    session = make(window=9)
    tokens = hold(session, count)
    numbers = []
    for token in tokens:
        assert session.window == 9
        numbers.append(session.report(token, "r", size))
    assert session.window == 0
    session.want(11)
    half = count // 2
    session.judged(ACCEPTED, numbers[: half - 1], 0, 0)
    assert session.window == 0
    session.judged(ACCEPTED, numbers[half - 1 : half], 0, 0)
    assert session.window == 11


def test_reports_of_an_earlier_process_are_held_and_unacked_once() -> None:
    session = make()
    token = ("job", 1, 1, 1)
    assert session.recovered(token, "report", 5) == 1
    assert session.recovered(token, "report again", 5) == 0
    assert list(session.held) == [token]
    assert session.unacked() == [(1, "report")]


def test_epochs_of_what_an_earlier_process_left_have_been_seen() -> None:
    """So that an orchestrator that lost its history is told by the first Hello, and is not obeyed before it has taken a higher epoch."""
    session = make()
    session.recovered(("job", 1, 5, 1), "report", 5)
    assert session.max_epoch_seen == 5
    session.hold(("job", 2, 7, 1))
    session.hold(("job", 3, 6, 1))
    assert session.max_epoch_seen == 7
    assert not attach(session, epoch=6)
    assert session.assigned("job", 6, [(9, 1)]) == []
    assert attach(session, epoch=8)


def test_pauses_between_dials_are_jittered_grow_and_stay_between_a_tenth_and_a_third_of_the_lease() -> None:
    session = make()
    ceilings = [max(make_pause(seed, failures) for seed in range(200)) for failures in range(8)]
    assert ceilings[:4] == sorted(ceilings[:4])
    assert ceilings[0] < 0.4 * SECOND_NS
    assert LEASE_DEFAULT_NS // 3 * 0.95 < ceilings[-1] <= LEASE_DEFAULT_NS // 3
    for _ in range(100):
        assert RECONNECT_MIN_NS <= session.disconnected() <= LEASE_DEFAULT_NS // 3


def test_where_nobody_listens_the_next_dial_comes_within_a_second() -> None:
    session = make()
    pauses = [session.disconnected(refused=True) for _ in range(300)]
    assert min(pauses) >= RECONNECT_MIN_NS
    assert 0.95 * SECOND_NS < max(pauses) <= SECOND_NS
    assert max(session.disconnected() for _ in range(300)) > SECOND_NS, (
        "a line that is lost is dialled no more often than before"
    )


def make_pause(seed: int, failures: int) -> int:
    session = Session(incarnation=b"", dice=random.Random(seed), window=1)
    for _ in range(failures):
        session.disconnected()
    return session.disconnected()


def test_an_attach_makes_the_next_dial_quick_again() -> None:
    session = make()
    for _ in range(20):
        session.disconnected()
    attach(session)
    assert session.disconnected() < 0.4 * SECOND_NS


def test_a_new_incarnation_keeps_what_is_held_and_unacked() -> None:
    session = make()
    tokens = hold(session, 2)
    session.report(tokens[0], "report", 1)
    session.reborn(b"j" * 16)
    assert session.incarnation == b"j" * 16
    assert list(session.held) == tokens
    assert session.unacked() == [(1, "report")]


def test_the_own_lease_runs_from_when_the_acknowledged_beat_was_sent() -> None:
    session = make()
    assert session.self_lease_ends_ns is None
    attach(session, now_ns=100)
    assert session.self_lease_ends_ns == 100 + 9 * SECOND_NS
    session.beat(1, 5 * SECOND_NS)
    session.beat(2, 8 * SECOND_NS)
    session.beat_acked(2)
    assert session.self_lease_ends_ns == 17 * SECOND_NS
    session.beat_acked(1)
    session.beat_acked(77)
    assert session.self_lease_ends_ns == 17 * SECOND_NS


def test_the_own_lease_runs_from_when_the_hello_was_sent_however_long_the_welcome_took() -> None:
    session = make()
    lease = {"heartbeat_ns": 3 * SECOND_NS, "lease_ns": 12 * SECOND_NS}
    assert session.welcomed(epoch=1, now_ns=7 * SECOND_NS, hello_ns=2 * SECOND_NS, **lease)
    assert session.self_lease_ends_ns == 11 * SECOND_NS
    session.beat(1, 7 * SECOND_NS)
    session.beat_acked(1)
    assert session.welcomed(epoch=2, now_ns=40 * SECOND_NS, hello_ns=38 * SECOND_NS, **lease)
    assert session.self_lease_ends_ns == 47 * SECOND_NS


class Machine(RuleBasedStateMachine):
    """The session against plain dicts, under any order of messages."""

    def __init__(self) -> None:
        super().__init__()
        self.session = make()
        self.held: dict[Token, int] = {}
        self.reports: dict[int, Token] = {}
        self.epoch = 0
        self.now = 0

    @rule(
        job=st.sampled_from("ab"),
        epoch=st.integers(0, 4),
        pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 2))),
    )
    def assign(self, job: str, epoch: int, pairs: list[tuple[int, int]]) -> None:
        kept = self.session.assigned(job, epoch, pairs)
        if epoch < self.epoch:
            assert kept == []
            return
        self.epoch = epoch
        expected = []
        for position, (index, attempt) in enumerate(pairs):
            token = (job, index, epoch, attempt)
            if token not in self.held:
                self.held[token] = 0
                expected.append(position)
        assert (list(range(len(pairs))) if kept is None else kept) == expected

    @rule(token=st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(0, 4), st.integers(1, 2)))
    def hold(self, token: Token) -> None:
        self.session.hold(token)
        self.held.setdefault(token, 0)
        self.epoch = max(self.epoch, token[2])

    @rule(data=st.data(), size=st.integers(0, 5 * 1024 * 1024))
    @precondition(lambda self: self.held)
    def report(self, data: st.DataObject, size: int) -> None:
        token = data.draw(st.sampled_from(sorted(self.held)))
        number = self.session.report(token, token, size)
        assert (number == 0) == bool(self.held[token])
        if number:
            assert number not in self.reports
            self.held[token] = number
            self.reports[number] = token

    @rule(code=st.integers(0, 9), numbers=st.lists(st.integers(0, 30)), pause=st.integers(0, 10**10))
    def judge(self, code: int, numbers: list[int], pause: int) -> None:
        self.session.judged(code, numbers, pause, self.now)
        if 1 <= code <= 5:
            for number in numbers:
                token = self.reports.pop(number, None)
                if token is not None:
                    del self.held[token]

    @rule(data=st.data())
    @precondition(lambda self: self.held)
    def forget(self, data: st.DataObject) -> None:
        tokens = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True))
        assert self.session.forget(tokens) == tokens
        for token in tokens:
            self.reports.pop(self.held.pop(token), None)

    @rule(epoch=st.integers(0, 4))
    def welcome(self, epoch: int) -> None:
        assert self.session.welcomed(epoch=epoch, heartbeat_ns=1, lease_ns=1, now_ns=self.now) == (epoch >= self.epoch)
        self.epoch = max(self.epoch, epoch)

    @rule(step=st.integers(0, 10**10))
    def pass_time(self, step: int) -> None:
        self.now += step
        for number in self.session.due(self.now):
            assert number in self.reports

    @invariant()
    def agrees(self) -> None:
        session = self.session
        assert session.held == self.held
        assert dict(session.unacked()) == self.reports
        assert session.max_epoch_seen == self.epoch >= max((token[2] for token in session.held), default=0)
        assert session.window in (0, 4)
        if len(self.reports) <= 1 and session.unacked_bytes <= UNACKED_BYTES_MAX // 2:
            assert session.window == 4
        if session.unacked_bytes >= UNACKED_BYTES_MAX:
            assert session.window == 0


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestMachine = Machine.TestCase
