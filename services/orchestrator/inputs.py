"""Inputs of an up-stream task: results of other jobs of the orchestrator above, put into the payload where it asks for them.

A worker does this with decoded values in the process that runs the task. A down-stream orchestrator knows no values and need not: payloads and
results are JSON, so a result is put in as it stands (docs/protocol.md, Inputs).
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import grpc.aio

from antfarm import net, wire
from antfarm import payload as payloads
from antfarm.errors import InvalidArgument, Unavailable
from antfarm.model import PAYLOAD_BYTES_MAX, BlobRef, DependencyKind, TaskState
from antfarm.storage import AsyncStorage
from antfarm.v1 import job_pb2, job_pb2_grpc, work_queue_pb2

FETCH_TIMEOUT_S = 30.0
LEARN_S = 2.0
"""How long a value waits to hear where Storage is before that counts as weather."""
NONE_AFTER_S = 60.0
"""So long after the first Welcome it is believed that there is no Storage. Until then the orchestrator above may only not have heard yet itself, from the one above it."""


class Inputs:
    """Fetches results from the orchestrator above, and from Storage where they are kept there."""

    def __init__(self, storage_address: str, tls: net.Tls | None, learned: str = "") -> None:
        """`storage_address` is the operator's; `learned` is what the orchestrator above said to an earlier process."""
        self.storage_address = storage_address or learned
        self.given = bool(storage_address)
        """By the operator, who knows better than the orchestrator above."""
        self._tls = tls
        self._learned = asyncio.Event()
        self._silent_since_s: float | None = None
        """When a Welcome said nothing of Storage for the first time, by the loop's clock."""

    def learn(self, storage_address: str) -> bool:
        """What the orchestrator above says of Storage. True when that is news: the operator knows better, and who says nothing does not know yet."""
        if not storage_address and self._silent_since_s is None:
            self._silent_since_s = asyncio.get_running_loop().time()
        if self.given or storage_address in ("", self.storage_address):
            return False
        self.storage_address = storage_address
        self._learned.set()
        return True

    async def resolve(
        self,
        group: work_queue_pb2.TaskGroup,
        assignment: wire.Assigned,
        channel: grpc.aio.Channel | None,
    ) -> bytes:
        """The payload with the inputs in their places. Weather: try again later; other errors will not mend."""
        if channel is None:
            raise Unavailable("the orchestrator above is not attached")
        values = []
        for number, dependency in enumerate(group.inputs):
            if int(dependency.kind) != DependencyKind.EACH:
                raise InvalidArgument(
                    f"input {number} is a whole job, which a stage cannot take: pass its tasks one by one"
                )
            result = await self._result(channel, dependency.job_id, assignment.index + dependency.offset)
            values.append(json.loads(await self.whole(result)))
        payload = json.dumps(
            put(json.loads(await self.whole(assignment.payload)), values), separators=(",", ":")
        ).encode()
        if len(payload) <= PAYLOAD_BYTES_MAX:
            return payload
        key = f"tasks/{group.job_id}/{assignment.index}/{group.epoch}-{assignment.attempt}/payload"
        return payloads.blob_payload(await self._put(key, payload))

    async def _result(self, channel: grpc.aio.Channel, job_id: str, index: int) -> bytes:
        stub: Any = job_pb2_grpc.JobServiceStub(channel)
        request = job_pb2.StreamResultsRequest(job_id=job_id, indices=[index])
        try:
            async for message in stub.StreamResults(request, timeout=FETCH_TIMEOUT_S):
                for result in message.results:
                    if result.state != TaskState.SUCCEEDED:
                        raise InvalidArgument(f"input {job_id}/{index} did not succeed")
                    return bytes(result.result)
        except grpc.aio.AioRpcError as error:
            raise wire.error_from_rpc(error) from None
        except (grpc.aio.UsageError, *net.CALL_ENDED):
            # The link has closed its channel: before the call, while the input before was fetched from Storage, or just now.
            raise Unavailable("the orchestrator above hung up") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not we were cancelled but the call: likewise.
            raise Unavailable("the orchestrator above hung up") from None
        raise Unavailable(f"input {job_id}/{index} is not there yet")

    def lacks(self, encoded: bytes) -> bool:
        """True when the value lies in Storage, and where that is nobody has said."""
        return not self.storage_address and payloads.blob_of(encoded) is not None

    async def whole(self, encoded: bytes) -> bytes:
        """The encoded value itself: fetched from Storage where it is only a reference."""
        blob = payloads.blob_of(encoded)
        if blob is None:
            return encoded
        storage = await self._storage()
        try:
            return await storage.get(blob)
        finally:
            await storage.aclose()

    async def _put(self, key: str, content: bytes) -> BlobRef:
        storage = await self._storage()
        try:
            return await storage.put(key, content)
        finally:
            await storage.aclose()

    async def _storage(self) -> AsyncStorage:
        if not self.storage_address:
            await self._hear_of_storage()
        return AsyncStorage(self.storage_address, tls=self._tls)

    async def _hear_of_storage(self) -> None:
        """Wait for the address a little. Unavailable while it may still come; InvalidArgument when the one above has long said that it knows none.

        An empty address in a Welcome says nothing for certain: the orchestrator above may be below another one itself, and not have heard yet.
        """
        since_s = self._silent_since_s
        if since_s is not None and asyncio.get_running_loop().time() - since_s >= NONE_AFTER_S:
            raise InvalidArgument(
                "a value lies in Storage, and this orchestrator was given none: start it with --storage"
            )
        with suppress(TimeoutError):
            async with asyncio.timeout(LEARN_S):
                await self._learned.wait()
        if not self.storage_address:
            raise Unavailable("a value lies in Storage, and the orchestrator above has not said yet where that is")


def put(form: Any, values: list[Any]) -> Any:
    """The JSON form with each {"$input": k} replaced by values[k]. InvalidArgument when there is no such input."""
    if isinstance(form, list):
        return [put(item, values) for item in form]
    if not isinstance(form, dict):
        return form
    if len(form) == 1 and "$input" in form:
        number = form["$input"]
        if not isinstance(number, int) or not 0 <= number < len(values):
            raise InvalidArgument(f"the payload asks for input {number!r}, and there are {len(values)}")
        return values[number]
    return {key: put(item, values) for key, item in form.items()}
