"""What the orchestrators' records say of tasks: asked over the public protocol. Whatever is not a clear answer is an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import grpc.aio

from antfarm import net, wire
from antfarm.address import parse_address
from antfarm.errors import InvalidArgument, JobNotFound
from antfarm.model import TaskState
from antfarm.v1 import job_pb2, job_pb2_grpc, system_pb2, system_pb2_grpc
from services.storage.core.sweep import UNKNOWN, Standing, Task

CALL_TIMEOUT_S = 30.0


class Record:
    """The records of several orchestrators. End it by `close`."""

    def __init__(self, addresses: Sequence[str], tls: net.Tls | None) -> None:
        """Args: addresses: "host:port" of each."""
        self._channels = {address: net.open_channel(parse_address(address), tls) for address in addresses}

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            await channel.close()

    async def identities(self) -> frozenset[str]:
        """The ids of the journals behind the addresses. Unavailable when one does not answer, InvalidArgument when it is no orchestrator."""
        found = set()
        for address, channel in self._channels.items():
            stub = system_pb2_grpc.SystemServiceStub(channel)
            with _our_errors():
                info = await stub.GetServerInfo(system_pb2.GetServerInfoRequest(), timeout=CALL_TIMEOUT_S)
            if info.program != "orchestrator":
                raise InvalidArgument(f"--sweep-for {address}: a {info.program} answers there, not an orchestrator")
            found.add(info.server_id)
        return frozenset(found)

    async def standings(self, tasks: Iterable[Task]) -> dict[Task, Standing]:
        """How each of the tasks stands. An error of ours when any orchestrator cannot say."""
        found = dict.fromkeys(tasks, UNKNOWN)
        by_job: dict[str, list[int]] = {}
        for job_id, index in found:
            by_job.setdefault(job_id, []).append(index)
        for channel in self._channels.values():
            for job_id, indices in by_job.items():
                try:
                    outcomes = await _outcomes(channel, job_id, indices)
                except JobNotFound:
                    continue
                for index in indices:
                    found[job_id, index] |= outcomes.get(index, Standing(live=True))
        return found


async def _outcomes(channel: grpc.aio.Channel, job_id: str, indices: Sequence[int]) -> dict[int, Standing]:
    """The recorded ones of these tasks. JobNotFound."""
    stub = job_pb2_grpc.JobServiceStub(channel)
    request = job_pb2.StreamResultsRequest(job_id=job_id, indices=indices)
    found: dict[int, Standing] = {}
    with _our_errors():
        async for message in stub.StreamResults(request, timeout=CALL_TIMEOUT_S):
            for result in message.results:
                succeeded = int(result.state) == TaskState.SUCCEEDED
                found[result.index] = Standing(
                    ended=True,
                    keys=frozenset(blob.key for blob in result.outputs),
                    results=(result.result,) if succeeded else (),
                )
    return found


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise wire.error_from_rpc(error) from None
