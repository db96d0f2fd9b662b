"""One attempt from payload to record: decode, call, encode, spill. The same for plain functions and for coroutines.

Everything that an attempt may use and most do not (context, scratch, Storage) is made when it is asked for.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from antfarm import model, payload, pipeline
from antfarm.builtin import CALL, CALL_TASK, COMMAND
from antfarm.context import Context
from antfarm.errors import DataLoss, InvalidArgument, PayloadTooLarge, UserError
from antfarm.model import FailureClass
from antfarm.task import Task, registry
from services.worker.child.channel import Channel
from services.worker.child.failure import KIND_CHARS_MAX, describe, text_of
from services.worker.child.protocol import (
    CANCEL,
    COOPERATIVE,
    OUT_DONE,
    OUT_FAILED,
    OUT_PROGRESS,
    OUT_SAVED,
    SAVED_MAX,
    Setup,
    Template,
)

SUMMARISE = ":summarise"
"""Ending of task types that get the outcomes of their first input as first argument (antfarm.pipeline)."""


class Job:
    """A template, looked up and unpacked once for all its tasks."""

    __slots__ = ("common", "epoch", "function", "is_async", "job_id", "memory_bytes", "parameter", "shared", "task")

    def __init__(self, template: Template, task: Task[..., Any]) -> None:
        self.task = task
        self.function = task.function
        self.parameter = task.context_parameter
        self.job_id = template["job_id"]
        self.epoch = template["epoch"]
        self.common = template.get("common", b"")
        self.memory_bytes = template.get("memory_bytes", 0)
        self.shared: dict[int, Any] = template.get("shared_inputs", {})


class Stopping:
    """Says whether an attempt should stop; looking at it once makes the agent wait for the function to end by itself."""

    __slots__ = ("_page", "_seq", "asked")

    def __init__(self, page: memoryview, seq: int) -> None:
        self._page = page
        self._seq = seq
        self.asked = False  # set on the loop, where many attempts run at once

    def is_set(self) -> bool:
        """True when the attempt should stop."""
        self._page[COOPERATIVE] = self._seq
        return self.asked or self._page[CANCEL] == self._seq


class AttemptContext(Context):
    """A context that costs nothing until one of its attributes is used."""

    def __init__(self, runner: Runner, job: Job, seq: int, index: int, attempt: int) -> None:
        self._lazy = (runner, job, seq, index, attempt)

    def __getattr__(self, name: str) -> Any:
        # Called for missing attributes only: the first use of any fills in all.
        if name.startswith("__") or "_make_scratch" in self.__dict__:
            raise AttributeError(name)
        runner, job, seq, index, attempt = self._lazy
        super().__init__(
            job_id=job.job_id,
            index=index,
            epoch=job.epoch,
            attempt=attempt,
            scratch=lambda: runner.make_scratch(seq),
            log=runner.logger,
            report_progress=lambda fraction, text: runner.channel.send((OUT_PROGRESS, seq, fraction, text)),
            open_storage=runner.open_context_storage,
            stopping=Stopping(runner.channel.page, seq),  # type: ignore[arg-type]
            is_async=job.task.is_async,
        )
        return getattr(self, name)

    @property
    def saved(self) -> tuple[model.BlobRef, ...]:
        """What it put into Storage; does not make anything."""
        return self.outputs if "_make_scratch" in self.__dict__ else ()

    @property
    def stopping(self) -> Stopping:
        """The flag behind `cancelled`."""
        flag: Stopping = self._stopping  # type: ignore[assignment]
        return flag


class Runner:
    """What all attempts of a child share."""

    def __init__(self, channel: Channel, setup: Setup, logger: Any, tasks: dict[str, Task[..., Any]]) -> None:
        self.channel = channel
        self.logger = logger
        self.allow_pickle = setup["allow_pickle"]
        self._scratch = Path(setup["scratch"])
        self._tls = setup["tls"]
        self._tasks = tasks
        self._storage_address = ""
        self._storage: Any = None
        self.jobs: dict[int, Job] = {}

    # ---- surroundings -----------------------------------------------------------------------------------------------

    def set_storage(self, address: str) -> None:
        """Where Storage is from now on."""
        if address != self._storage_address:
            self._storage_address, self._storage = address, None

    def open_storage(self) -> Any:
        """The blocking client of Storage, one for the process. Weather when the farm has none."""
        if self._storage is None:
            from antfarm.storage import Storage  # loads gRPC, which most children never need

            self._storage = Storage(self._address(), self._tls_files())
        return self._storage

    def open_context_storage(self) -> Any:
        """What `ctx.storage` is."""
        return self.open_storage()

    def _address(self) -> str:
        if not self._storage_address:
            raise InvalidArgument(
                "the farm has no Storage: start one and give its address to the orchestrator with --storage"
            )
        return self._storage_address

    def _tls_files(self) -> Any:
        from antfarm.net import Tls

        return Tls.from_paths(*self._tls) if self._tls else None

    def make_scratch(self, seq: int) -> Path:
        """The attempt's directory on this node."""
        path = self._scratch / str(seq)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def remove_scratch(self, context: AttemptContext, seq: int) -> None:
        """Remove the attempt's directory if it was made."""
        if context.__dict__.get("_scratch") is not None:
            shutil.rmtree(self._scratch / str(seq), ignore_errors=True)

    def add_job(self, slot: int, template: Template) -> None:
        """Keep a template in its place."""
        for k, value in template.get("shared_inputs", {}).items():
            template["shared_inputs"][k] = self.load_outcomes(value)
        self.jobs[slot] = Job(template, self._tasks[template["type"]])

    # ---- inputs -----------------------------------------------------------------------------------------------------

    def load_outcomes(self, packed: Any) -> Callable[[], list[pipeline.Outcome]]:
        """Outcomes of a whole job, decoded at first use and kept for the other tasks of the group."""
        cache: list[list[pipeline.Outcome]] = []

        def load() -> list[pipeline.Outcome]:
            if not cache:
                with _no_collection():
                    job_id, rows = _rows(packed)
                    rows.sort(key=lambda row: int(row[0]))
                    cache.append([self._outcome(job_id, row) for row in rows])
            return cache[0]

        return load

    def _outcome(self, job_id: str, row: list[Any]) -> pipeline.Outcome:
        index, number, attempt, result, outputs, failure, worker_id, run_us = row
        state = _STATES.get(number, model.TaskState.FAILED)
        value = None
        if state is model.TaskState.SUCCEEDED:
            value = payload.decode_result(result, get=self.fetch, allow_pickle=self.allow_pickle)
        return pipeline.Outcome(
            index=index,
            state=state,
            value=value,
            failure=_failure(failure),
            job_id=job_id,
            attempt=attempt,
            worker_id=worker_id,
            outputs=tuple([model.BlobRef(key=k, size_bytes=s, sha256=d) for k, s, d in outputs]) if outputs else (),
            run_s=run_us / 1e6,
        )

    def fetch(self, ref: model.BlobRef) -> bytes:
        """Bytes of a payload or result that lies in Storage."""
        content: bytes = self.open_storage().get(ref)
        return content

    def _inputs(self, job: Job, own: list[Any] | None) -> list[Any]:
        values: dict[int, Any] = {k: load() for k, load in job.shared.items()}
        for k, result in own or ():
            values[k] = payload.decode_result(result, get=self.fetch, allow_pickle=self.allow_pickle)
        return [values[k] for k in sorted(values)]

    # ---- one attempt ------------------------------------------------------------------------------------------------

    def arguments(self, job: Job, data: bytes, own_inputs: list[Any] | None) -> tuple[list[Any], dict[str, Any]]:
        """Decode a call. Raises whatever reading and decoding raise: `undecodable` says what that means."""
        if own_inputs is None and not job.shared:
            return payload.decode_call(data, job.common, get=self.fetch, allow_pickle=self.allow_pickle)
        inputs = self._inputs(job, own_inputs)
        args, kwargs = payload.decode_call(
            data, job.common, inputs=inputs, get=self.fetch, allow_pickle=self.allow_pickle
        )
        if job.task.name.endswith(SUMMARISE):
            args = [inputs[0], *args]
        return args, kwargs

    def succeeded(self, job: Job, context: AttemptContext, seq: int, run_us: int, value: Any) -> None:
        """Encode the value and send the record of a success, or of a failure when that cannot be done."""
        try:
            data = payload.encode_result(value, allow_pickle=self.allow_pickle)
            saved = context.saved
            if len(saved) >= SAVED_MAX:
                raise InvalidArgument(f"the task saved {len(saved):,} outputs; one attempt may save {SAVED_MAX - 1:,}")
            if len(data) > model.PAYLOAD_BYTES_MAX:
                ref = self._spill(context, data)
                data, saved = payload.blob_payload(ref), (*saved, ref)
        except UserError as error:
            self.channel.send(
                (OUT_FAILED, seq, run_us, FailureClass.PERMANENT.value, "unencodable result", text_of(error), "")
            )
            return
        except BaseException as error:  # of the user's methods that encoding calls, SystemExit and CancelledError too
            self.failed(job, seq, run_us, error)
            return
        if saved:
            blobs = [(ref.key, ref.size_bytes, ref.sha256) for ref in saved]
            self.channel.send((OUT_SAVED, seq, run_us, data, blobs))
        else:
            self.channel.send((OUT_DONE, seq, run_us, data))

    def _spill(self, context: AttemptContext, data: bytes) -> model.BlobRef:
        if not self._storage_address:
            raise PayloadTooLarge(
                f"the result has {len(data):,} bytes, above {model.PAYLOAD_BYTES_MAX:,}, and the farm has no Storage to keep it in"
            )
        ref: model.BlobRef = self.open_storage().put(context.output_key("result"), data)
        return ref

    def undecodable(self, seq: int, error: Exception) -> None:
        """Send the record of a call that could not be read, in both kinds of children.

        PERMANENT when every reader would meet the same: what is malformed, missing or rotten. Else INFRA: Storage is away, or something is
        wrong with it or with this node.
        """
        lasting = isinstance(error, UserError | DataLoss)
        failure_class = FailureClass.PERMANENT if lasting else FailureClass.INFRA
        kind = "undecodable input" if isinstance(error, UserError) else type(error).__name__[:KIND_CHARS_MAX]
        self.channel.send((OUT_FAILED, seq, 0, failure_class.value, kind, text_of(error), ""))

    def failed(self, job: Job, seq: int, run_us: int, error: BaseException) -> None:
        """Send the record of a failure."""
        failure_class, kind, message, trace = describe(error, job.task, job.memory_bytes)
        self.channel.send((OUT_FAILED, seq, run_us, int(failure_class), kind, message, trace))


_STATES = {int(state): state for state in model.TaskState}
"""Looked up, because there may be a hundred thousand outcomes for one task."""


def all_tasks(allow_pickle: bool) -> dict[str, Task[..., Any]]:
    """What this child can run: the registry and the built-in types."""
    from services.worker.child.command import run_command

    tasks = {**registry(), COMMAND: Task(run_command, COMMAND)}
    if allow_pickle:
        tasks[CALL] = CALL_TASK
    return tasks


@contextmanager
def _no_collection() -> Iterator[None]:
    """Around the making of many values that stay: the garbage collector would go through them again and again, for a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _rows(packed: Any) -> tuple[str, list[list[Any]]]:
    if isinstance(packed, str):
        import msgpack

        with open(packed, "rb") as file:
            job_id, *rows = msgpack.Unpacker(file)
    else:
        job_id, *rows = packed
    return job_id, rows


def _failure(row: list[Any] | None) -> model.Failure | None:
    if row is None:
        return None
    number, kind, message, trace, log_tail = row
    return model.Failure(
        failure_class=FailureClass(number), kind=kind, message=message, traceback=trace, log_tail=log_tail
    )
