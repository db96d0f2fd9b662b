"""Inputs of tasks from other jobs: read from the orchestrator once per received group, handed to the children.

Kind EACH: the result of one task, for each attempt its own. Kind ALL: all outcomes of a job, the same for the whole group; when they are
large they go by a file, so that neither the agent's memory nor a pipe holds them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgpack

from antfarm import wire
from antfarm.errors import AntFarmError, InvalidArgument, NotFound, Unavailable, Weather
from antfarm.model import DependencyKind, TaskState
from antfarm.v1 import common_pb2, job_pb2, job_pb2_grpc
from services.worker.core.attempt import Attempt, Group
from services.worker.runtime.translation import result_row

INLINE_BYTES_MAX = 1024 * 1024
"""Outcomes of a whole job above this go by file."""
RETRY_S = 0.5
INDICES_MAX = 100_000


class InputReader:
    """Reads inputs over whatever channel the link has at the time."""

    def __init__(self, directory: Path, channel: Callable[[], grpc.aio.Channel | None]) -> None:
        self._directory = directory
        self._channel = channel
        self._reading: dict[tuple[Group, int], asyncio.Future[Any]] = {}

    async def fill(
        self, group: Group, dependencies: Sequence[common_pb2.Dependency], attempts: Sequence[Attempt]
    ) -> None:
        """Set the inputs of all attempts, which the group counts as live until they end.

        Waits out the weather; raises NotFound or InvalidArgument when they cannot be had, OSError when they cannot be kept on this node.
        """
        own: list[list[tuple[int, bytes]]] = [[] for _ in attempts]
        for k, dependency in enumerate(dependencies):
            kind = int(dependency.kind)
            if kind == DependencyKind.ALL:
                await self._share(group, k, dependency.job_id)
                continue
            if kind != DependencyKind.EACH:
                raise InvalidArgument(f"input {k}: dependency kind {kind} is not supported by this worker")
            indices = [attempt.index + dependency.offset for attempt in attempts]
            results = await self._patiently(lambda d=dependency, i=indices: self._results(d.job_id, i))  # type: ignore[misc]
            for inputs, index in zip(own, indices, strict=True):
                inputs.append((k, results[index]))
        for attempt, inputs in zip(attempts, own, strict=True):
            attempt.inputs = inputs

    async def _share(self, group: Group, k: int, job_id: str) -> None:
        """Read an input of the whole group once, however many ask for it at the same time."""
        if k in group.shared_inputs:
            return
        reading = self._reading.get((group, k))
        if reading is None:
            reading = asyncio.ensure_future(self._patiently(lambda: self._whole_job(job_id)))
            self._reading[group, k] = reading
            reading.add_done_callback(lambda _: self._reading.pop((group, k)))
        value = await asyncio.shield(reading)
        if group.live:
            group.shared_inputs[k] = value
        else:  # the last attempt went meanwhile, and nobody would forget it any more
            _remove(value)

    async def _patiently(self, read: Callable[[], Any]) -> Any:
        while True:
            try:
                return await read()
            except grpc.aio.AioRpcError as error:
                mapped = wire.error_from_rpc(error)
                if not isinstance(mapped, Weather):
                    raise mapped from None
            except Weather:
                pass
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Not we were cancelled but the call: the link has closed its channel.
            await asyncio.sleep(RETRY_S)

    def forget(self, group: Group) -> None:
        """Remove the group's inputs from disk; no attempt of it is left."""
        for value in group.shared_inputs.values():
            _remove(value)
        group.shared_inputs.clear()

    def _stream(self, job_id: str, indices: Sequence[int] = ()) -> Any:
        channel = self._channel()
        if channel is None:
            raise Unavailable("not attached")
        return job_pb2_grpc.JobServiceStub(channel).StreamResults(
            job_pb2.StreamResultsRequest(job_id=job_id, indices=indices, columns=True)
        )

    async def _results(self, job_id: str, indices: list[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for start in range(0, len(indices), INDICES_MAX):
            call = self._stream(job_id, indices[start : start + INDICES_MAX])
            try:
                async for message in call:
                    for result in wire.results_in(message):
                        if result.state == TaskState.SUCCEEDED:
                            found[result.index] = result.result
            finally:
                call.cancel()
        missing = [index for index in indices if index not in found]
        if missing:
            raise NotFound(f"the result of task {job_id}/{missing[0]} is not there")
        return found

    async def _whole_job(self, job_id: str) -> list[Any] | str:
        """[job_id, row, ...], or the path of a file with just that."""
        rows: list[Any] = []
        size = 0
        path = self._directory / secrets.token_hex(16)
        packed = msgpack.Packer(unicode_errors="backslashreplace")
        parts = [packed.pack(job_id)]
        call = self._stream(job_id)
        try:
            async for message in call:
                for result in wire.results_in(message):
                    row = result_row(result)
                    part = packed.pack(row)
                    size += len(part)
                    parts.append(part)
                    if size <= INLINE_BYTES_MAX:
                        rows.append(row)
                if size > INLINE_BYTES_MAX:
                    rows.clear()
                    with path.open("ab") as file:
                        file.write(b"".join(parts))
                    parts.clear()
        except BaseException:  # the next try takes another name
            path.unlink(missing_ok=True)
            raise
        finally:
            call.cancel()
        return [job_id, *rows] if size <= INLINE_BYTES_MAX else str(path)


def _remove(value: object) -> None:
    """The file of an input, where it is one."""
    if isinstance(value, str):
        Path(value).unlink(missing_ok=True)


def is_hopeless(error: AntFarmError | OSError) -> bool:
    """Whether another attempt elsewhere would meet the same."""
    return isinstance(error, NotFound | InvalidArgument)
