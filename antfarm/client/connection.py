"""One client's connection: calls that outlive bad weather, result streams that resume, values that lie in Storage.

Every call of the protocol is safe to repeat, because the client names jobs and the job's tasks are numbered. So UNAVAILABLE and its like
are answered with another try after a pause (full jitter), for as long as the client's patience lasts; everything else is raised at once. The first
contact is different: a wrong address should be told within seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from antfarm import model, net, payload
from antfarm.address import parse_address
from antfarm.client.line import Line
from antfarm.errors import (
    AntFarmError,
    DiskFull,
    Draining,
    InvalidArgument,
    JobNotFound,
    Overloaded,
    ProtocolUnsupported,
    Unavailable,
    Weather,
)
from antfarm.v1 import (
    backup_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    task_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from antfarm.wire import Arrived, error_from_rpc, results_in

# After antfarm.net, which sets what gRPC reads when it is loaded.
import grpc.aio  # isort: skip

if TYPE_CHECKING:
    from antfarm.storage import AsyncStorage

A = TypeVar("A")

CALL_TIMEOUT_S = 30.0
"""One try of a unary call."""
_TRY_MIN_S = 5.0
"""However little patience there is, one try gets this time."""
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.1, 4.0
_COMPLAIN_AFTER_S = 5.0

log = logging.getLogger("antfarm.client")


REFUSALS = (Overloaded, DiskFull, Draining)
"""Weather that the farm itself tells of: it has answered, and nothing was taken."""


class Patience:
    """Decides after each failure whether to try again, and waits; one per logical call."""

    def __init__(self, address: str, patience_s: float) -> None:
        self._address = address
        self._patience_s = patience_s
        self._since: float | None = None
        self._tries = 0
        self._complained = False

    def relieved(self) -> None:
        """Something arrived: the next failure starts from the beginning."""
        self._since, self._tries, self._complained = None, 0, False

    async def bear(self, error: AntFarmError, since: float | None = None) -> None:
        """Return after a pause when another try makes sense; raise the error otherwise.

        Args:
            since: when the try began (`time.monotonic`), where it may have taken long.
        """
        if not isinstance(error, Weather):
            raise error
        now = time.monotonic()
        if self._since is None:
            self._since = now if since is None else since
        self._tries += 1
        longest = min(_PAUSE_MAX_S, _PAUSE_MIN_S * 2**self._tries)
        pause = max(random.uniform(0, longest), error.retry_after_s or 0)
        trouble_s = now - self._since
        if trouble_s + pause > self._patience_s:
            raise error
        if trouble_s > _COMPLAIN_AFTER_S and not self._complained:
            self._complained = True
            what = "the farm at %s refuses for now: %s; trying on for %.0f s"
            if not isinstance(error, REFUSALS):
                what = "the farm at %s does not answer (%s); trying on for %.0f s"
            log.warning(what, self._address, error, self._patience_s - trouble_s)
        await asyncio.sleep(pause)


class Seen:
    """Which outcomes of a job have come: a byte for each of its tasks."""

    def __init__(self) -> None:
        self._marks = bytearray()

    def fresh(self, results: Sequence[Arrived]) -> list[Arrived]:
        """Those that have not come before.

        Others come again after a broken call: of what was recorded together, which may be too large for one message, the cursor
        passes all or nothing.
        """
        marks, fresh = self._marks, []
        for result in results:
            index = result.index
            if index >= len(marks):
                marks.extend(bytes(index + 1 - len(marks)))
            if not marks[index]:
                marks[index] = 1
                fresh.append(result)
        return fresh

    def has(self, indices: Iterable[int]) -> bool:
        """Whether those of all these tasks have come."""
        return all(index < len(self._marks) and self._marks[index] for index in indices)

    def lacking(self, task_count: int) -> int:
        """How many have not come of a job of so many tasks."""
        return task_count - self._marks.count(1, 0, task_count)


class Connection:
    """A channel to one orchestrator, with its stubs. Made by `open` inside the loop that uses it; end it with `close`."""

    def __init__(self, address: str, tls: net.Tls | None, *, patience_s: float, allow_pickle: bool) -> None:
        self.address = address
        self.allow_pickle = allow_pickle
        self.patience_s = patience_s
        self.storage_address = ""
        self.offered: frozenset[str] = frozenset()
        """Task types that workers offered when the connection was made; looked up only where pickles are allowed."""
        self.streams = 0
        """Result streams that are open; a connection carries a limited number."""
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._channel = net.open_channel(address, tls)
        self._storage: AsyncStorage | None = None
        self._closed = False
        self.jobs = job_pb2_grpc.JobServiceStub(self._channel)
        self.line = Line(self.jobs)
        self.tasks = task_pb2_grpc.TaskServiceStub(self._channel)
        self.workers = worker_pb2_grpc.WorkerServiceStub(self._channel)
        self.system = system_pb2_grpc.SystemServiceStub(self._channel)
        self.backups = backup_pb2_grpc.BackupServiceStub(self._channel)

    @classmethod
    async def open(
        cls,
        address: str,
        tls: net.Tls | None = None,
        *,
        patience_s: float,
        allow_pickle: bool = False,
        dial_timeout_s: float = net.DIAL_TIMEOUT_S,
    ) -> Connection:
        """A connection that was answered. Unavailable in one line when nobody answers within `dial_timeout_s`."""
        made = cls(parse_address(address), tls, patience_s=patience_s, allow_pickle=allow_pickle)
        try:
            await made._greet(dial_timeout_s)
        except BaseException:
            await made.close()
            raise
        return made

    async def _greet(self, timeout_s: float) -> None:
        patience = Patience(self.address, timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(deadline - time.monotonic(), 0.1)
            try:
                info = await self.system.GetServerInfo(system_pb2.GetServerInfoRequest(), timeout=left_s)
                break
            except grpc.aio.AioRpcError as rpc_error:
                error = error_from_rpc(rpc_error)
                try:
                    await patience.bear(error)
                except Weather:
                    raise Unavailable(
                        f"no farm answers at {self.address} ({_brief(error)}): check the address, or start one there with "
                        "`antfarm up` or `python -m services.orchestrator`"
                    ) from None
        if info.program != "orchestrator":
            raise InvalidArgument(
                f"{self.address} is a {info.program or 'stranger'}, not an orchestrator: connect to that one's address"
            )
        if info.protocol_major != model.PROTOCOL_MAJOR:
            raise ProtocolUnsupported(
                f"{self.address} speaks protocol {info.protocol_major} and this client {model.PROTOCOL_MAJOR}: install the same version"
            )
        self.storage_address = info.storage_address
        self.line.offered = info.protocol_minor >= model.CONVERSE_MINOR
        if self.allow_pickle:
            self.offered = frozenset([offer async for worker in self.workers_now() for offer in worker.task_types])

    async def close(self) -> None:
        """Close channel and Storage."""
        self._closed = True
        self.line.close()
        if self._storage is not None:
            await self._storage.aclose()
        await self._channel.close()

    # ---- calls ------------------------------------------------------------------------------------------------------

    def demand_open(self) -> None:
        """Raise Unavailable after `close`. Before each try of a call, because gRPC says no more than that a channel is closed."""
        if self._closed:
            raise Unavailable("the farm was closed; connect again")

    @contextmanager
    def closable(self) -> Iterator[None]:
        """Around what waits for an answer: `close` ends it with Unavailable, where gRPC says no more than that it was cancelled."""
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task is not None and task.cancelling()):
                raise Unavailable("the farm was closed; connect again") from None
            raise

    def patience(self) -> Patience:
        """For one logical call of this connection."""
        return Patience(self.address, self.patience_s)

    async def call(self, method: Callable[..., Awaitable[A]], request: Message) -> A:
        """The answer of a call that may be repeated. Raises our errors."""
        patience = self.patience()
        timeout_s = min(CALL_TIMEOUT_S, max(self.patience_s, _TRY_MIN_S))
        while True:
            self.demand_open()
            began = time.monotonic()
            try:
                with self.closable():
                    return await method(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                await patience.bear(error_from_rpc(error), began)

    async def results(
        self,
        job_id: str,
        *,
        follow: bool = True,
        indices: Sequence[int] = (),
        made: asyncio.Event | None = None,
        task_count: int | None = None,
    ) -> AsyncIterator[Sequence[Arrived]]:
        """Recorded outcomes in the order of their recording, in batches as they arrive, each outcome once.

        With `follow` until the job has ended and all its outcomes have come (or those of all `indices`), over any number of broken
        calls. Unavailable when some do not come however often they are asked for.

        Args:
            made: for a job that is still on its way to the orchestrator: set when it is there.
            task_count: how many tasks it has, where that is known; else the orchestrator is asked at the end.
        """
        patience, search, cursor, seen = self.patience(), self.patience(), 0, Seen()
        while True:
            waits = made is not None and not made.is_set()
            request = job_pb2.StreamResultsRequest(
                job_id=job_id, cursor=cursor, follow=follow, indices=indices, expected=waits, columns=True
            )
            self.demand_open()
            messages = self._messages(request, along=made is not None)
            try:
                with self.closable():
                    async for message in messages:
                        patience.relieved()
                        cursor = message.cursor
                        if results := seen.fresh(results_in(message)):
                            search.relieved()
                            yield results
            except grpc.aio.AioRpcError as error:
                if indices and seen.has(indices):
                    return
                trouble = error_from_rpc(error)
                if made is not None and waits and isinstance(trouble, JobNotFound):
                    await made.wait()
                else:
                    await patience.bear(trouble)
                continue
            finally:
                await messages.aclose()
            lacking = await self._lacking(job_id, seen, task_count) if follow and not indices else 0
            if not lacking:
                return
            # As after a restored backup: what has run again is recorded below the cursor.
            cursor = 0
            await search.bear(
                Unavailable(f"the outcomes of job {job_id} ended without those of {lacking:,} of its tasks")
            )

    async def _messages(
        self, request: job_pb2.StreamResultsRequest, *, along: bool
    ) -> AsyncGenerator[job_pb2.StreamResultsResponse, None]:
        """StreamResults once; `along`: beside others on the open stream, where it has room. For whoever takes at once what comes."""
        if along and self.line.has_room:
            try:
                async with aclosing(self.line.results(request)) as messages:
                    async for message in messages:
                        yield message
                return
            except grpc.aio.AioRpcError:
                if self.line.known:
                    raise
        call = self.jobs.StreamResults(request)
        self.streams += 1
        try:
            async for message in call:
                yield message
        finally:
            self.streams -= 1
            call.cancel()

    async def _lacking(self, job_id: str, seen: Seen, task_count: int | None) -> int:
        """How many outcomes have not come of a job whose stream has ended. JobNotFound when it was purged."""
        if task_count is not None and not seen.lacking(task_count):
            return 0
        answer = await self.call(self.jobs.GetJob, job_pb2.GetJobRequest(job_id=job_id))
        return seen.lacking(answer.job.task_count)

    async def watch(self, job_id: str) -> AsyncIterator[job_pb2.Job]:
        """The job's status at once and after changes, until it has ended, over any number of broken calls."""
        patience = self.patience()
        while True:
            self.demand_open()
            call = self.jobs.WatchJob(job_pb2.WatchJobRequest(job_id=job_id))
            try:
                with self.closable():
                    async for message in call:
                        patience.relieved()
                        yield message.job
                return
            except grpc.aio.AioRpcError as error:
                await patience.bear(error_from_rpc(error))
            finally:
                call.cancel()

    async def workers_now(self) -> AsyncIterator[worker_pb2.Worker]:
        """Workers that are there, whatever they get at the moment: only those that have left or are lost are not."""
        away = (worker_pb2.WORKER_STATE_GONE, worker_pb2.WORKER_STATE_LOST)
        token = ""
        while True:
            request = worker_pb2.ListWorkersRequest(page_size=1000, page_token=token)
            answer = await self.call(self.workers.ListWorkers, request)
            for worker in answer.workers:
                if worker.state not in away:
                    yield worker
            token = answer.next_page_token
            if not token:
                return

    # ---- Storage ----------------------------------------------------------------------------------------------------

    def storage(self) -> AsyncStorage:
        """The farm's Storage. Unavailable when the farm has none."""
        if self._storage is None:
            if not self.storage_address:
                raise Unavailable(
                    f"the farm at {self.address} has no Storage; start the orchestrator with --storage HOST:PORT"
                )
            from antfarm.storage import AsyncStorage

            self._storage = AsyncStorage(self.storage_address, self._tls)
        return self._storage

    async def spill(self, data: bytes) -> bytes:
        """A payload as it travels: itself, or where it lies in Storage. Named by its content, so repeating does no harm."""
        return await payload.spill_async(data, self._put)

    async def _put(self, data: bytes) -> model.BlobRef:
        key = f"payloads/{hashlib.sha256(data).hexdigest()}"
        with self.closable():
            return model.BlobRef(**_fields(await self.storage().put(key, data)))

    async def load(self, data: bytes) -> bytes:
        """A result as it was encoded, read from Storage where it lies there."""
        return await payload.fetch_async(data, self._get)

    def get_blocking(self, ref: model.BlobRef) -> bytes:
        """What lies in Storage, from a thread other than the loop's."""
        return asyncio.run_coroutine_threadsafe(self._get(ref), self._loop).result()

    async def _get(self, ref: model.BlobRef) -> bytes:
        with self.closable():
            return await self.storage().get(ref)


def _fields(ref: model.BlobRef) -> dict[str, Any]:
    return {"key": ref.key, "size_bytes": ref.size_bytes, "sha256": ref.sha256}


def _brief(error: AntFarmError) -> str:
    """The last words of gRPC's long story, e.g. "Connection refused"."""
    text = " ".join(str(error).split())
    for known in (
        "Connection refused",
        "DNS resolution failed",
        "No route to host",
        "Network is unreachable",
        "handshake failed",
    ):
        if known.lower() in text.lower():
            return known.lower()
    with suppress(ValueError):
        return text[: text.index(";")]
    return text[:120]
