"""Stages register two task types; a plan's result is readable in any language."""

from __future__ import annotations

import base64
import json

import pytest

from antfarm import errors, payload
from antfarm.model import Failure, FailureClass, TaskResult, TaskState
from antfarm.pipeline import Expansion, outcome_of, stage
from antfarm.task import Limit, Options, Retry, registry
from antfarm.v1 import common_pb2


def test_an_expansion_holds_template_and_payloads_as_the_protocol_has_them() -> None:
    expansion = Expansion(
        task="demo.fetch",
        calls=[(1, "a"), [2], 3, b"x"],
        common={"box": [1, 2]},
        options=Options(retries=Retry(max_attempts=4), limit=Limit("web", 2)),
    )
    form = json.loads(payload.encode_result(expansion))["$expansion"]
    template = common_pb2.TaskTemplate.FromString(base64.b64decode(form["template"]))
    assert (template.type, template.retry.max_attempts, template.limit.max_active) == ("demo.fetch", 4, 2)
    assert template.common_payload == b'{"box":[1,2]}'
    assert [base64.b64decode(p) for p in form["payloads"]] == [b'[1,"a"]', b"[2]", b"[3]", b'[{"$bytes":"eA=="}]']


def test_a_call_above_the_inline_limit_is_refused() -> None:
    with pytest.raises(errors.PayloadTooLarge, match="call 1 of the plan"):
        payload.encode_result(Expansion(task="demo.fetch", calls=[1, "x" * 70_000]))


def test_a_stage_registers_its_two_types() -> None:
    made = stage(
        name="demo.stage", plan=lambda n: Expansion(task="demo.f", calls=range(n)), summarise=lambda outcomes, n: n
    )
    assert registry()["demo.stage:plan"] is made.plan
    assert registry()["demo.stage:summarise"] is made.summarise


@pytest.mark.parametrize(
    ("failure_class", "kind"),
    [
        (FailureClass.APP, errors.TaskFailed),
        (FailureClass.CRASH, errors.TaskCrashed),
        (FailureClass.INFRA, errors.TaskLost),
        (FailureClass.DEPENDENCY, errors.DependencyFailed),
        (FailureClass.CANCELLED, errors.TaskCancelled),
        (FailureClass.EXPIRED, errors.TaskExpired),
    ],
)
def test_an_outcome_raises_the_error_of_its_cause(failure_class: FailureClass, kind: type[errors.TaskError]) -> None:
    failure = Failure(failure_class=failure_class, kind="ValueError", message="bad", traceback="Traceback ...\n  line")
    outcome = outcome_of(
        TaskResult(index=3, state=TaskState.FAILED, attempt=2, failure=failure, worker_id="w"), job_id="j"
    )
    assert not outcome.ok
    with pytest.raises(kind) as caught:
        outcome.result()
    assert str(caught.value).splitlines()[0] == "task j/3 attempt 2 on w: ValueError: bad"
    assert "Traceback ..." in str(caught.value)
    assert caught.value.failure is failure


def test_an_outcome_of_a_success_has_its_value() -> None:
    outcome = outcome_of(TaskResult(index=0, state=TaskState.SUCCEEDED, result=b"[1,2]", run_us=1500))
    assert (outcome.ok, outcome.result(), outcome.run_s, outcome.error()) == (True, [1, 2], 0.0015, None)


def test_an_outcome_without_details_still_raises_the_right_error() -> None:
    with pytest.raises(errors.TaskCancelled):
        outcome_of(TaskResult(index=0, state=TaskState.CANCELLED)).result()
