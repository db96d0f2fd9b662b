"""Every refusal of the core is one line that says what to do: all of them, enumerated from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from orchestrator_harness import Harness, append_event, create_event, each, spec_of

from antfarm.errors import AntFarmError
from antfarm.model import (
    PAYLOAD_BYTES_MAX,
    SECOND_NS,
    ConcurrencyLimit,
    JobId,
    RetryPolicy,
    SessionId,
    Timeouts,
    WorkerId,
)
from services.orchestrator.core import effects, events, jobs, limits, workers
from services.orchestrator.core.turn import CoreConfig

Case = Callable[[], AntFarmError]
CONFIG = CoreConfig(orchestrator_id="self", payload_bytes_max=1 << 20)


def farm_with(job_id: str = "j", **spec: object) -> Harness:
    farm = Harness(CONFIG)
    farm.create(job_id, 2, **spec)
    return farm


def created(**spec: object) -> Case:
    """A submission that is refused."""
    payloads = spec.pop("payloads", 1)
    job_id = str(spec.pop("job_id", "new"))
    return lambda: farm_with().refusal(lambda n: create_event(n, job_id, payloads, **spec))  # type: ignore[arg-type]


def on(farm: Harness, make: Callable[[int], events.Event]) -> AntFarmError:
    return farm.refusal(make)


def disk_low() -> AntFarmError:
    farm = farm_with()
    farm.do(events.DiskLow(low=True))
    return farm.refusal(lambda n: create_event(n, "new"))


def retry(job_id: str, new: str, farm: Harness | None = None) -> AntFarmError:
    return (farm or farm_with()).refusal(
        lambda n: events.RetryJob(request=n, job_id=JobId(job_id), new_job_id=JobId(new))
    )


def retry_of_dependent() -> AntFarmError:
    farm = farm_with()
    farm.create("k", 2, dependencies=(each("j"),))
    return retry("k", "new", farm)


def purge_needed() -> AntFarmError:
    farm = farm_with("p")
    farm.cancel("p")
    farm.create("q", 0, close=False, dependencies=(each("p"),))
    return farm.refusal(lambda n: events.PurgeJob(request=n, job_id=JobId("p")))


def attach(first: dict[str, object] | None = None, silent_s: float = 0.0, **fields: object) -> AntFarmError:
    """A worker that is refused, perhaps after one of the same name that attached and fell silent."""
    farm = farm_with(type="u")
    worker = farm.worker("w1", **(first or {}))
    if silent_s:
        farm.wait(silent_s)
        farm.drop()
    for name, value in fields.items():
        setattr(worker, name, value) if hasattr(worker, name) else worker.fields.__setitem__(name, value)
    return worker.refused()


def thrown_out(act: Callable[[Harness], None]) -> AntFarmError:
    farm = farm_with(type="u")
    farm.worker("w1")
    act(farm)
    return farm.claim(effects.Refuse).error


def attach_anew(farm: Harness) -> None:
    farm.do(replace(farm_hello(farm), session="again"))  # type: ignore[arg-type]


def replaced() -> AntFarmError:
    """A process whose place another one has taken, which has gone since."""
    farm = farm_with(type="u")
    first = farm.worker("w1")
    first.detach()
    farm.do(replace(farm_hello(farm), session="second", incarnation=b"second"))  # type: ignore[arg-type]
    farm.do(events.Detach(session=SessionId("second")))
    farm.drop()
    return first.refused()


def too_large_a_plan() -> AntFarmError:
    with pytest.raises(AntFarmError) as raised_:
        limits.check_plan([bytes(PAYLOAD_BYTES_MAX)] * 4_112)
    return raised_.value


def cancelled_keeps() -> AntFarmError:
    farm = farm_with("old")
    farm.cancel("old")
    return farm.refusal(lambda n: create_event(n, "new", [b"x" * 60_000] * 20))


def undrain(farm: Harness) -> None:
    farm.drop()
    farm.do(replace(farm_hello(farm), session="below", orchestrator=True))  # type: ignore[arg-type]
    farm.drop()
    for on in (True, False):
        farm.ask(lambda n, on=on: events.DrainWorker(request=n, worker_id=WorkerId("w1"), drain=on, limit_ns=SECOND_NS))  # type: ignore[misc]
    farm.drop(effects.SendDrain)


def farm_hello(farm: Harness) -> events.Attach:
    worker = farm.state.workers["w1"]
    return events.Attach(
        session=worker.session or "",  # type: ignore[arg-type]
        worker_id=WorkerId("w1"),
        incarnation=worker.incarnation,
        protocol_major=1,
        slots=1,
        window=1,
        task_types=frozenset("t"),
    )


CASES: dict[str, Case] = {
    "job j exists with another specification: choose another id": lambda: on(
        farm_with(), lambda n: create_event(n, "j", 2, priority=3)
    ),
    "job k, which new depends on, does not exist here: submit it first": created(dependencies=(each("k"),)),
    "job id 'up/k': ids that start with up/ are of jobs from the orchestrator above": created(
        dependencies=(each("up/k"),)
    ),
    "job id 'up/x': ids that start with up/ are of jobs from the orchestrator above": created(job_id="up/x"),
    "job j has 2 tasks: go on from index 2, not 5": lambda: on(
        farm_with(close=False), lambda n: append_event(n, "j", 5, 1)
    ),
    "job j has other tasks at index 0 to 0: choose another job id": lambda: on(
        farm_with(), lambda n: append_event(n, "j", 0, [b"other"])
    ),
    "job j has 2 tasks, not 1: it was submitted with more input; choose another job id": lambda: on(
        farm_with(close=False), lambda n: append_event(n, "j", 0, 1, close=True)
    ),
    "its tasks are 257 MiB of arguments, the limit is 256 MiB: keep large ones in Storage, or submit several smaller requests": too_large_a_plan,
    "job j is closed and takes no more tasks: make a new job": lambda: on(
        farm_with(), lambda n: append_event(n, "j", 2, 1)
    ),
    "the orchestrator's disk is nearly full: nothing was taken; make room and submit again": disk_low,
    "too many tasks are queued: nothing was taken; submit again when some have run": created(
        payloads=[b"x" * 60_000] * 20
    ),
    "too many tasks are queued: nothing was taken; submit again when some have run, "
    "or purge ended jobs, whose failed and cancelled tasks keep 0 MiB for a retry": cancelled_keeps,
    "job j has 2 tasks, none of index 7: `antfarm task list` shows them": lambda: on(
        farm_with(), lambda n: events.CancelTask(request=n, job_id=JobId("j"), index=7, cause="")
    ),
    "no job 'k' here: `antfarm job list` shows those that are": lambda: on(
        farm_with(), lambda n: events.CloseJob(request=n, job_id=JobId("k"))
    ),
    "job j exists and is no retry of j: choose another id": lambda: retry("j", "j"),
    "job k takes inputs from other jobs: submit those tasks anew instead of retrying them": retry_of_dependent,
    "no task of job j ended without success: there is nothing to repeat": lambda: retry("j", "new"),
    "job j has tasks that have not ended: cancel it first": lambda: on(
        farm_with(), lambda n: events.PurgeJob(request=n, job_id=JobId("j"))
    ),
    "job p is needed by q, which has not ended: wait for that, or cancel it": purge_needed,
    "job id 'a job': use at most 256 of letters, digits and . _ - with / between segments, none of them . or ..": created(
        job_id="a job"
    ),
    "task type 'a type': use at most 128 of letters, digits and . _ : -": created(type="a type"),
    "job name is longer than 256 bytes: shorten it": created(name="x" * 257),
    "priority 11 is outside -10 to 10: give one within": created(priority=11),
    "common arguments are 65537 bytes, the limit is 65536: keep them in Storage": created(
        common_payload=b"x" * (PAYLOAD_BYTES_MAX + 1)
    ),
    "17 dependencies, at most 16 are possible: put tasks that are waited for together into one job": created(
        dependencies=(each("j"),) * 17
    ),
    "labels are more than 16384 bytes: use fewer or shorter ones": created(labels={"k": "x" * 20_000}),
    "the task's version is longer than 256 bytes: shorten it": created(version="x" * 257),
    "a concurrency limit needs a name and a max_active of at least 1": created(
        limit=ConcurrencyLimit(name="", max_active=1)
    ),
    "timeout run must be above 0; leave it out for no limit": created(timeouts=Timeouts(run_ns=0)),
    "resources must be numbers from 0 to 1e+15": created(resources={"gpu": -1.0}),
    "the pauses between attempts must be of 0 s to a hundred years": created(retry=RetryPolicy(backoff_initial_ns=-1)),
    "names of resources are more than 256 bytes: use fewer or shorter ones": created(resources={"x" * 257: 1.0}),
    "a payload is 65537 bytes, the limit is 65536: keep large values in Storage and send their reference": created(
        payloads=[b"x" * (PAYLOAD_BYTES_MAX + 1)]
    ),
    "this orchestrator speaks protocol 1, the worker speaks 2: install matching versions": lambda: attach(
        protocol_major=2
    ),
    "max_epoch_seen 4294967296 cannot be: no epoch is that high": lambda: attach(max_epoch_seen=1 << 32),
    "w1 stands above this orchestrator already: name another --upstream": lambda: attach(descendants=("self",)),
    "worker w1 was silent beyond its lease: attach as a new incarnation": lambda: attach(silent_s=13.0),
    "a worker w1 is attached already: give this one another --worker-id": lambda: attach(incarnation=b"other"),
    "worker w1 has attached on a newer connection: this one is late": lambda: attach({"dial": 3}, dial=2),
    "another process of worker w1 has taken its place: attach as a new incarnation": replaced,
    "the drain is over: attach again": lambda: thrown_out(undrain),
    "the worker attached anew on another stream": lambda: thrown_out(attach_anew),
    "no worker 'w9' here: `antfarm worker list` shows those that are": lambda: on(
        farm_with(),
        lambda n: events.DrainWorker(request=n, worker_id=WorkerId("w9"), drain=True, limit_ns=SECOND_NS),
    ),
}
"""What is said -> what brings it about."""


@pytest.mark.parametrize("text", CASES)
def test_a_refusal_says_what_to_do(text: str) -> None:
    assert str(CASES[text]()) == text
    advice = re.search(r": |; |\bmust\b|\bneeds\b", text)
    assert advice or text == "the worker attached anew on another stream", "a notice to a stream that is replaced"


def raised() -> Iterator[re.Pattern[str]]:
    """The texts of all errors that the core makes, as patterns: what is filled in may be anything."""
    for module in (jobs, limits, workers):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Call) and node.args and _is_error(node.func):
                yield re.compile("".join(_pattern(part) for part in _parts(node.args[0])), re.DOTALL)


def _is_error(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "errors":
        return True
    return isinstance(function, ast.Name) and function.id in ("InvalidArgument", "PayloadTooLarge")


def _parts(text: ast.expr) -> list[ast.expr]:
    return text.values if isinstance(text, ast.JoinedStr) else [text]


def _pattern(part: ast.expr) -> str:
    return re.escape(part.value) if isinstance(part, ast.Constant) and isinstance(part.value, str) else ".+"


def test_no_refusal_is_left_out() -> None:
    patterns = list(raised())
    assert len(patterns) >= 30
    silence = "worker w1 was silent for 12.1 s: attach as a new incarnation"  # told to a stream when its lease ends: test_core_leases
    known = [*CASES, silence]
    assert [pattern.pattern for pattern in patterns if not any(map(pattern.fullmatch, known))] == []


def test_a_spec_within_the_limits_is_taken() -> None:
    limits.check_job("a/b-c_d.e", spec_of(name="x" * 256, priority=-10))
