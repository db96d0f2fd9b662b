"""Stages: what a down-stream orchestrator runs, and the outcomes that a summary is made of.

A stage is two ordinary task types, `<name>:plan` and `<name>:summarise`. The plan turns one request into an `Expansion`, the calls of
the child tasks; the down-stream orchestrator runs them as a job of its own and then the summary, which gets all outcomes first and then the
request's own arguments. What the summary returns is the result of the parent's task.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from antfarm import errors, payload
from antfarm.form import add_form
from antfarm.model import PAYLOAD_BYTES_MAX, BlobRef, Failure, FailureClass, TaskResult, TaskState
from antfarm.task import Options, Task, register, template


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one task ended: with a `value`, or without one and with a `failure`."""

    index: int
    state: TaskState
    value: Any = None
    failure: Failure | None = None
    job_id: str = ""
    attempt: int = 0
    worker_id: str = ""
    outputs: tuple[BlobRef, ...] = ()
    run_s: float = 0.0

    @property
    def ok(self) -> bool:
        """True when the task succeeded."""
        return self.state is TaskState.SUCCEEDED

    def error(self) -> errors.TaskError | None:
        """The exception that `result` raises, or None."""
        if self.ok:
            return None
        failure = self.failure or Failure(
            failure_class=_CLASS_OF_STATE.get(self.state, FailureClass.APP), message="failed"
        )
        kind = errors.TASK_ERRORS.get(failure.failure_class, errors.TaskFailed)
        return kind(
            failure,
            state=self.state,
            job_id=self.job_id,
            index=self.index,
            attempt=self.attempt,
            worker_id=self.worker_id,
        )

    def result(self) -> Any:
        """The value; raises the TaskError of its cause when the task did not succeed."""
        error = self.error()
        if error is not None:
            raise error
        return self.value


_CLASS_OF_STATE = {
    TaskState.CANCELLED: FailureClass.CANCELLED,
    TaskState.EXPIRED: FailureClass.EXPIRED,
    TaskState.DEAD_LETTER: FailureClass.INFRA,
}


def outcome_of(
    result: TaskResult,
    *,
    job_id: str = "",
    get: Callable[[BlobRef], bytes] | None = None,
    allow_pickle: bool = False,
) -> Outcome:
    """The outcome of a recorded result, its value decoded; `get` reads values that lie in Storage."""
    value = None
    if result.state is TaskState.SUCCEEDED:
        value = payload.decode_result(result.result, get=get, allow_pickle=allow_pickle)
    return Outcome(
        index=result.index,
        state=result.state,
        value=value,
        failure=result.failure,
        job_id=job_id,
        attempt=result.attempt,
        worker_id=result.worker_id,
        outputs=result.outputs,
        run_s=result.run_us / 1e6,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """What a plan returns: the task type and the calls of the children.

    Args:
        task: the task that runs them, or the name of one that only workers know.
        calls: arguments of each child: a tuple or list of positional arguments, or one other value as the only argument.
        common: keyword arguments of all of them.
        options: options in place of the task's own; needed only with a name.
    """

    task: Task[..., Any] | str
    calls: Iterable[Any]
    common: Mapping[str, Any] = field(default_factory=dict)
    options: Options | None = None

    def form(self) -> dict[str, Any]:
        """As any language may write it: template and payloads as the protocol has them, in base64."""
        from antfarm.wire import template_to_wire  # gRPC is loaded by those who plan, not by all who import this

        name = self.task if isinstance(self.task, str) else self.task.name
        options = self.options or (Options() if isinstance(self.task, str) else self.task.options_set)
        made = template(name, options, payload.encode_common(self.common))
        payloads = []
        for number, call in enumerate(self.calls):
            encoded = payload.encode_call(call if isinstance(call, tuple | list) else (call,))
            if len(encoded) > PAYLOAD_BYTES_MAX:
                raise errors.PayloadTooLarge(
                    f"call {number} of the plan has {len(encoded):,} bytes of arguments, above {PAYLOAD_BYTES_MAX:,}: save "
                    "large values to Storage and pass the af.File"
                )
            payloads.append(base64.b64encode(encoded).decode())
        encoded_template = base64.b64encode(template_to_wire(made).SerializeToString(deterministic=True)).decode()
        return {"$expansion": {"template": encoded_template, "payloads": payloads}}


add_form(Expansion, Expansion.form)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A registered stage. Submit `stage.name` to an orchestrator that has a down-stream one `--as` it."""

    name: str
    plan: Task[..., Any]
    summarise: Task[..., Any]


def stage(
    *,
    name: str,
    plan: Callable[..., Expansion],
    summarise: Callable[..., Any],
    version: str = "",
    options: Options | None = None,
) -> Stage:
    """Register what a down-stream orchestrator needs to run requests of type `name`.

    Args:
        plan: gets the request's arguments, returns an `Expansion`.
        summarise: gets the list of `Outcome`s of the children, in their order, then the request's arguments; returns the result.
        options: options of both task types.

    >>> summary = stage(
    ...     name="demo.count",
    ...     plan=lambda words: Expansion(task="demo.length", calls=words),
    ...     summarise=lambda outcomes, words: sum(outcome.result() for outcome in outcomes),
    ... )
    >>> summary.plan.name
    'demo.count:plan'
    """
    settings = options or Options(version=version)
    return Stage(
        name=name,
        plan=register(Task(plan, f"{name}:plan", settings)),
        summarise=register(Task(summarise, f"{name}:summarise", settings)),
    )
