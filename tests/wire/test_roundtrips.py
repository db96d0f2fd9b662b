"""Values survive the wire both ways, whatever they hold, and what a hostile peer sends becomes a value or one clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import wire_values as vst
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from antfarm import errors, model, wire
from antfarm.client.job import AsyncFuture, AsyncJob
from antfarm.v1 import common_pb2, job_pb2, work_queue_pb2

PAIRS: list[tuple[st.SearchStrategy[Any], Callable[[Any], Message], Callable[[Any], Any]]] = [
    (vst.blobs, wire.blob_to_wire, wire.blob_from_wire),
    (vst.failures, wire.failure_to_wire, wire.failure_from_wire),
    (vst.templates, wire.template_to_wire, wire.template_from_wire),
    (vst.dependencies, wire.dependency_to_wire, wire.dependency_from_wire),
    (vst.specs, wire.spec_to_wire, wire.spec_from_wire),
    (vst.statuses, wire.status_to_wire, wire.status_from_wire),
    (vst.results, wire.result_to_wire, wire.result_from_wire),
]


@pytest.mark.parametrize(("values", "to_wire", "from_wire"), PAIRS, ids=[p[1].__name__ for p in PAIRS])
def test_a_value_comes_back_as_it_was_sent(
    values: st.SearchStrategy[Any], to_wire: Callable[[Any], Message], from_wire: Callable[[Any], Any]
) -> None:
    @given(values)
    def check(value: Any) -> None:
        message = to_wire(value)
        parsed = type(message).FromString(message.SerializeToString())
        assert from_wire(parsed) == value
        assert to_wire(from_wire(parsed)) == message

    check()


def test_an_explanation_comes_back_as_it_was_sent() -> None:
    explanation = model.Explanation(findings=(model.Finding(what="a", why="b", help="c"), model.Finding(what="d")))
    assert wire.findings_from_wire(wire.findings_to_wire(explanation)) == explanation
    assert str(explanation) == "a\n    why:  b\n    help: c\nd"


@given(vst.tokens)
def test_tokens_come_back_grouped_by_job_and_epoch(tokens: list[wire.Token]) -> None:
    groups = wire.tokens_to_wire(tokens)
    assert len({(g.job_id, g.epoch) for g in groups}) == len(groups)
    assert sorted(wire.tokens_from_wire(groups)) == sorted(tokens)


def test_tokens_that_do_not_pair_are_refused() -> None:
    group = work_queue_pb2.HeldGroup(job_id="j", epoch=1, indices=[1, 2], attempts=[1])
    with pytest.raises(errors.InvalidArgument, match="indices and attempts differ"):
        wire.tokens_from_wire([group])


@given(st.integers(0, model.DURATION_NS_MAX))
def test_durations_are_exact_to_the_nanosecond(ns: int) -> None:
    assert wire.duration_from_wire(wire.duration_to_wire(ns)) == ns


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_any_duration_of_a_peer_becomes_one_that_the_journal_can_hold(seconds: int, nanos: int) -> None:
    ns = wire.duration_from_wire(duration_pb2.Duration(seconds=seconds, nanos=nanos))
    assert 0 <= ns <= model.DURATION_NS_MAX
    assert 2 * model.DURATION_NS_MAX < 2**63


def test_negative_durations_are_none_at_all() -> None:
    assert wire.duration_to_wire(-5) == duration_pb2.Duration()
    assert wire.duration_from_wire(duration_pb2.Duration(seconds=-1, nanos=-1)) == 0


def test_absent_fields_take_their_stated_defaults() -> None:
    template = wire.template_from_wire(common_pb2.TaskTemplate(type="t"))
    assert template == model.TaskTemplate(type="t")
    assert template.retry == model.RetryPolicy(max_attempts=1, backoff_initial_ns=10**9, backoff_max_ns=60 * 10**9)
    assert wire.spec_from_wire(job_pb2.JobSpec()).max_failures is None
    assert wire.spec_from_wire(job_pb2.JobSpec(max_failures=0)).max_failures == 0


def test_no_limit_differs_from_a_limit_of_nothing() -> None:
    zero = model.TaskTemplate(type="t", timeouts=model.Timeouts(run_ns=0))
    assert wire.template_from_wire(wire.template_to_wire(zero)).timeouts == model.Timeouts(run_ns=0)


def test_unknown_numbers_of_a_newer_peer_never_fail() -> None:
    """Except for a dependency of a job to be made, where a guess would run tasks too early."""
    failure = common_pb2.Failure()
    failure.ParseFromString(b"\x08\x63")  # failure_class = 99
    assert wire.failure_from_wire(failure).failure_class is model.FailureClass.APP
    result = common_pb2.TaskResult.FromString(b"\x10\x63")  # state = 99
    assert wire.result_from_wire(result).state is model.TaskState.FAILED
    job = job_pb2.Job.FromString(b"\x18\x63" + b"\x32\x04\x08\x63\x10\x05")  # state = 99, counts = [{99: 5}]
    assert wire.status_from_wire(job).state is model.JobState.RUNNING
    assert wire.status_from_wire(job).counts == {}
    newer = common_pb2.Dependency.FromString(b"\x0a\x01j\x10\x63")  # kind = 99
    spec = job_pb2.JobSpec(dependencies=[newer])
    for refuse in (lambda: wire.dependency_from_wire(newer), lambda: wire.spec_from_wire(spec)):
        with pytest.raises(errors.InvalidArgument, match="kind 99 is not supported"):
            refuse()
    (told,) = wire.status_from_wire(job_pb2.Job(spec=spec)).spec.dependencies
    assert told == model.Dependency(job_id=model.JobId("j"), kind=model.DependencyKind.ALL)


def test_a_future_that_ended_in_a_way_of_a_newer_peer_has_failed() -> None:
    message = common_pb2.TaskResult.FromString(b"\x10\x63")  # state = 99
    future: AsyncFuture[None] = AsyncFuture(AsyncJob(None, "j"), 0, message)  # type: ignore[arg-type]
    assert future.state is model.TaskState.FAILED
    assert repr(future) == "<future j/0 failed>"


def test_of_a_group_any_attempts_can_be_struck_in_columns_and_out_of_them() -> None:
    group = work_queue_pb2.TaskGroup(
        columns=work_queue_pb2.AssignmentColumns(indices=[3, 4, 5], attempts=[1, 2, 1], payloads=[b"3", b"4", b"5"])
    )
    group.assignments.add(index=6, attempt=1, payload=b"6", remaining=wire.duration_to_wire(9), app_failures=1)
    group.assignments.add(index=7, attempt=4, payload=b"7")
    assigned = [
        (3, 1, b"3", None, 0),
        (4, 2, b"4", None, 0),
        (5, 1, b"5", None, 0),
        (6, 1, b"6", 9, 1),
        (7, 4, b"7", None, 0),
    ]
    for kept in (range(5), [1, 3], [0, 4], [3, 4], [0, 1, 2], []):
        left = work_queue_pb2.TaskGroup()
        left.CopyFrom(group)
        wire.keep_assigned(left, kept)
        assert wire.assigned_in(left) == [assigned[position] for position in kept]
        assert wire.assigned_pairs(left) == [assigned[position][:2] for position in kept]


def test_unknown_fields_of_a_newer_peer_are_ignored() -> None:
    blob = common_pb2.BlobRef(key="k", size_bytes=1, sha256=b"x")
    newer = common_pb2.BlobRef.FromString(blob.SerializeToString() + b"\xfa\x3f\x03new")  # field 1023
    assert wire.blob_from_wire(newer) == wire.blob_from_wire(blob)


@given(st.text(alphabet=st.characters(), max_size=50))
def test_any_text_of_a_failure_can_travel(words: str) -> None:
    """Also lone surrogates, which Python makes of file names that are not UTF-8."""
    cut = wire.cut_failure(
        model.Failure(failure_class=model.FailureClass.APP, kind=words, message=words, traceback=words, log_tail=words)
    )
    assert wire.failure_from_wire(wire.failure_to_wire(cut)) == cut
    assert cut.message == words.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize("letter", ["x", "é", "雲", "🐜", "\udce9"])
def test_long_texts_are_cut_where_they_say_least(letter: str) -> None:
    """Messages keep their start, tracebacks both ends, logs their tail; no cut splits a character."""
    long = "START" + letter * 100_000 + "END"
    cut = wire.cut_failure(
        model.Failure(failure_class=model.FailureClass.APP, kind=long, message=long, traceback=long, log_tail=long)
    )
    limits = {"kind": 256, "message": 16 * 1024, "traceback": 16 * 1024, "log_tail": 64 * 1024}
    for name, limit in limits.items():
        assert limit - 40 <= len(getattr(cut, name).encode()) <= limit, name
    assert cut.message.startswith("START")
    assert cut.log_tail.endswith("END")
    assert (cut.traceback[:5], cut.traceback[-3:], cut.traceback.count("...cut...")) == ("START", "END", 1)
    assert wire.cut_failure(cut) == cut
