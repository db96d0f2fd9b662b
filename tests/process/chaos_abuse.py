"""The series in which hostile peers speak to a farm under load, on every RPC that its programs serve."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
from chaos_disk import SIZES, blobs_under_load
from chaos_farm import PATIENCE_S, ChaosFarm, chaos_farm
from chaos_report import Report
from chaos_silence import DEFAULT_H_S
from farm_bench import memory_mib
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

sys.path += [str(Path(__file__).parents[1] / name) for name in ("fuzz", "integration")]

from fuzz_bytes import mutate, twist
from scripted import FAILED, RELEASED, REVOKED, SUCCEEDED, ScriptedWorker, Token

from antfarm import net, wire
from antfarm.errors import AntFarmError
from antfarm.model import MESSAGE_BYTES_MAX
from antfarm.v1 import (
    backup_pb2,
    blob_pb2,
    blob_pb2_grpc,
    common_pb2,
    job_pb2,
    job_pb2_grpc,
    report_queue_pb2,
    system_pb2,
    task_pb2,
    task_pb2_grpc,
    work_queue_pb2,
    worker_pb2,
)
from services.orchestrator.core.limits import EPOCH_SEEN_MAX

RECEIVED_BYTES_MAX = MESSAGE_BYTES_MAX + 65536
"""What gRPC takes of one message (net.py)."""
GROWTH_MIB_MAX, TASK_MIB_MAX = 64, 2 / 1024
"""By how much memory of a program may grow, and by how much more for each task of the load, which is kept. Three messages of 4 MiB come each round."""
_OPTIONS = [
    *(option for option in net.CHANNEL_OPTIONS if option[0] != "grpc.max_send_message_length"),
    ("grpc.max_send_message_length", -1),
]
"""Of peers that send what they like."""
STREAM_S = 0.2
"""How long a peer that reads a stream stays; most have no end of their own."""
AT_ONCE = 24
"""Calls of one kind of abuse under way."""
_ORCHESTRATOR = (job_pb2, task_pb2, work_queue_pb2, report_queue_pb2, worker_pb2, system_pb2, backup_pb2, health_pb2, reflection_pb2)  # fmt: skip
_STORAGE = (blob_pb2, system_pb2, health_pb2)
_WORDS: dict[str, tuple[Any, ...]] = {
    "job_id": ("abuse/a", "abuse/b", "abuse/c"),
    "new_job_id": ("abuse/a", "abuse/d"),
    "worker_id": ("abuse-1", "abuse-2"),
    "key": ("abuse/a", "abuse/b"),
    "prefix": ("abuse/",),
    "type": ("abuse.nobody",),
    "task_types": ("abuse.nobody",),
    "protocol_major": (1,),
}
"""Names in messages that are right: those of the peers themselves, so that what they ask for rightly harms nobody else."""
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_ENDED = {"DUPLICATE", "SUPERSEDED", "FENCED"}
"""Verdicts on a report of a task that has ended; none of them lets it count."""


@dataclass(frozen=True)
class Method:
    """One RPC: its path, the message that it takes, and whether it answers with a stream."""

    path: str
    request: type[Message]
    streaming: bool


def methods_of(modules: Sequence[Any]) -> list[Method]:
    """Every RPC of these modules, so that a new one is abused from its first day."""
    return [
        Method(f"/{service.full_name}/{method.name}", GetMessageClass(method.input_type), method.server_streaming)
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def sample(cls: type[Message], dice: random.Random, depth: int = 3) -> Message:
    """A message of that kind as a peer may send it, with about two thirds of its fields."""
    message = cls()
    for field in dice.sample(list(cls.DESCRIPTOR.fields), len(cls.DESCRIPTOR.fields)):
        if dice.random() < 0.3 or (field.message_type is not None and not depth):
            continue
        value: Any = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is None:
                value["a"] = _value(field.message_type.fields_by_name["value"], dice)
        elif field.message_type is not None:
            part = sample(GetMessageClass(field.message_type), dice, depth - 1)
            value.append(part) if field.is_repeated else value.CopyFrom(part)
        elif field.is_repeated:
            value.extend(_value(field, dice) for _ in range(dice.randrange(3)))
        else:
            setattr(message, field.name, _value(field, dice))
    return message


def _value(field: FieldDescriptor, dice: random.Random) -> Any:
    if field.name in _WORDS:
        return dice.choice(_WORDS[field.name])
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return b"[1]" if field.type == FieldDescriptor.TYPE_BYTES else "a"
        case FieldDescriptor.CPPTYPE_BOOL:
            return dice.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return dice.choice(field.enum_type.values).number
        case _:
            return dice.randrange(1, 4)


async def abuse(directory: Path, rounds: int) -> Report:
    """Each round every kind of abuse once, from hundreds of calls at the same time; in the end, after several, the orchestrator is killed and reads what is left.

    Workers, clients and Storage's own clients work on beside it and must not notice.
    """
    with chaos_farm(directory) as farm:
        farm.farm.environment["MALLOC_MMAP_THRESHOLD_"] = (
            "131072"  # large messages leave no holes behind: what stays is kept
        )
        storage = await asyncio.to_thread(farm.farm.start_storage)
        await farm.start(DEFAULT_H_S)
        pids = _pids(farm)
        peers = Peers(farm, storage)
        async with blobs_under_load(farm, storage, sizes=SIZES[:-1], pause_s=0.2) as blobs, farm.load(clients=2):
            for number in range(rounds):
                await peers.round(number)
                await farm.progress()
            peers.complaints += peers.grown()
            if _pids(farm) != pids:
                peers.complaints.append("a program has died")
            if rounds > 1:
                await farm.kill("orchestrator")
                await farm.restart("orchestrator")
                await farm.progress()
        peers.complaints += [*_defects_told(farm), *blobs.wrong]
        lost = [name for name in farm.losses() if not name.startswith("abuse")]
        report = Report.untouched(f"{rounds} rounds of abuse", farm.verdict(), lost)
    report.figures += f"; {peers.figures}; {blobs.figures}"
    report.complaints += peers.complaints
    return report


def _pids(farm: ChaosFarm) -> dict[str, int]:
    return {program.name: program.pid for program in farm.farm.programs.values()}


def _defects_told(farm: ChaosFarm) -> list[str]:
    """What programs have logged as a defect of their own."""
    found = []
    for program in farm.farm.programs.values():
        text = program.log.read_text()
        found += [
            f"{program.name}: {line}" for line in re.findall(r"^.*(?:Traceback| ERROR | CRITICAL ).*$", text, re.M)
        ]
    return found[:10]


class Peers:
    """The hostile ones, what they were told, and what they should not have been told."""

    def __init__(self, farm: ChaosFarm, storage: str) -> None:
        self._farm = farm
        self._dice = random.Random(f"abuse {farm.dice.random()}")
        self._storage = storage
        self._methods = {farm.farm.address: methods_of(_ORCHESTRATOR), storage: methods_of(_STORAGE)}
        self._early_mib = self._late_mib = self._memory_mib()
        self.complaints: list[str] = []
        self.calls: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()

    @property
    def figures(self) -> str:
        """For the report."""
        calls = ", ".join(f"{number} {what}" for what, number in self.calls.items())
        verdicts = ", ".join(f"{number} {code}" for code, number in sorted(self.verdicts.items()))
        memory = ", ".join(
            f"{name} from {self._early_mib[name]:.0f} to {mib:.0f} MiB" for name, mib in self._late_mib.items()
        )
        return f"{calls}; verdicts on forged and replayed reports: {verdicts}; memory of {memory}"

    async def round(self, number: int) -> None:
        """All kinds of abuse."""
        # Those that may raise the epoch come before those that must know it.
        await asyncio.gather(self._messages(), self._oversize(), self._half_a_blob(number), self._connections())
        await self._hellos(number)
        await self._reports(number)
        await self._reports_of_the_load()

    def _memory_mib(self) -> dict[str, float]:
        return {name: memory_mib(self._farm.farm.program(name).pid) for name in ("orchestrator", "storage")}

    def grown(self) -> list[str]:
        """Programs that have kept too much."""
        self._late_mib = self._memory_mib()
        tasks = sum(self._farm.history.submitted.values())
        return [
            f"memory of {name} grew from {self._early_mib[name]:.0f} to {mib:.0f} MiB"
            for name, mib in self._late_mib.items()
            if mib - self._early_mib[name] > GROWTH_MIB_MAX + tasks * TASK_MIB_MAX
        ]

    def _demand(self, right: bool, what: str) -> None:
        if not right:
            self.complaints.append(what)

    # ---- bytes of every kind on every RPC ---------------------------------------------------------------------------

    async def _messages(self) -> None:
        """Random bytes, right messages, and right ones gone wrong, as one frame or several; streams are abandoned in the middle."""
        dice, calls = self._dice, []
        for address, methods in self._methods.items():
            for method in dice.sample(methods, len(methods)):
                right = [sample(method.request, dice) for _ in range(3)]
                wrong = [sample(method.request, dice) for _ in range(3)]
                for message in wrong:
                    twist(message, dice)
                data = [message.SerializeToString() for message in right]
                mutated = [mutate(each, dice, dice.choice(data)) for each in data]
                noise = [dice.randbytes(dice.choice((1, 10, 1_000, 60_000))) for _ in range(2)]
                kinds = (data, [m.SerializeToString() for m in wrong], mutated, noise, data[:1] + noise, [])
                calls += [self._call(address, method, kind, whole=dice.random() < 0.7) for kind in kinds]
        await self._at_once(calls)

    async def _at_once(self, calls: Sequence[Coroutine[Any, Any, Any]]) -> None:
        """So many calls at a time, on connections that are shared as a worker's are not."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(call: Coroutine[Any, Any, Any]) -> None:
            async with gate:
                await call

        await asyncio.gather(*map(one, calls))

    async def _call(
        self, address: str, method: Method, frames: Sequence[bytes], *, whole: bool = True, refused: bool = False
    ) -> grpc.StatusCode | None:
        """One call of raw bytes on a connection of its own; its status, None when this side gave it up. A call that ends by itself must end with an answer or a refusal.

        Args:
            whole: say that nothing follows; one answer must come then, be it a refusal.
            refused: a stream of answers must end as well, because the request is to be refused.
        """
        self.calls["calls"] += 1
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            call: Any = channel.stream_stream(method.path)()
            # gRPC itself leaves a call unanswered whose one message never came, until its client leaves.
            must_end = refused or (whole and not method.streaming and bool(frames))
            try:
                async with asyncio.timeout(PATIENCE_S if must_end else STREAM_S):
                    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                        for frame in frames:
                            await call.write(frame)
                        if whole:
                            await call.done_writing()
                    with suppress(grpc.aio.AioRpcError):
                        while await call.read() is not grpc.aio.EOF:
                            pass
                    code, text = await call.code(), await call.details()
            except TimeoutError:
                call.cancel()
                self._demand(not must_end, f"{method.path} gave no answer to {[f[:60] for f in frames]!r}")
                self.calls["left open by the peer"] += 1
                return None
        self.calls["refused"] += code is not grpc.StatusCode.OK
        self._demand(_is_no_defect(code, text), f"{method.path} ended with {code.name}: {text}")
        return code  # type: ignore[no-any-return]

    async def _oversize(self) -> None:
        """One byte more than is taken is refused; exactly as much must be read, and harm nobody. Some RPCs each round."""
        calls = []
        for address, methods in self._methods.items():
            for method in self._dice.sample(methods, 3):
                calls.append(self._one_too_large(address, method))
                calls.append(self._call(address, method, [_padded(method, self._dice, RECEIVED_BYTES_MAX)]))
        await self._at_once(calls)

    async def _one_too_large(self, address: str, method: Method) -> None:
        code = await self._call(address, method, [_padded(method, self._dice, RECEIVED_BYTES_MAX + 1)], refused=True)
        self._demand(
            code is grpc.StatusCode.RESOURCE_EXHAUSTED, f"{method.path}: a message above the limit ended with {code}"
        )

    async def _half_a_blob(self, number: int) -> None:
        """A write that ends before its finish frame leaves nothing."""
        key = f"abuse/half/{number}"
        header = blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key=key))
        chunk = blob_pb2.WriteBlobRequest(chunk=b"half" * 50_000)
        async with net.open_channel(self._storage) as channel:
            stub: Any = blob_pb2_grpc.BlobServiceStub(channel)
            for whole in (True, False):
                call = stub.WriteBlob()
                for frame in (header, chunk, chunk):
                    await call.write(frame)
                if not whole:
                    call.cancel()
                with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                    await call.done_writing()
                    await call
                    self.complaints.append(f"half of the blob {key} was taken for a whole one")
            reason = await _reason(stub.StatBlob(blob_pb2.StatBlobRequest(key=key)))
            self._demand(reason == "BLOB_NOT_FOUND", f"half of the blob {key}: {reason}")

    # ---- connections ------------------------------------------------------------------------------------------------

    async def _connections(self) -> None:
        """Hundreds of connections that say nothing, nonsense, or the beginning of HTTP/2, and are reset or closed."""
        dice = self._dice
        words = (b"", _HTTP2[:10], _HTTP2, _HTTP2 + bytes(9), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", dice.randbytes(500))  # fmt: skip
        for address in self._methods:
            await self._at_once([_connect(address, dice.choice(words), dice.random() < 0.8) for _ in range(200)])
            self.calls["connections"] += 200

    # ---- workers that are none --------------------------------------------------------------------------------------

    def _worker(self, name: str, task_type: str = "abuse.nobody", slots: int = 1) -> ScriptedWorker:
        where: Any = SimpleNamespace(address=self._farm.farm.address)
        return ScriptedWorker(where, name, types=(task_type,), slots=slots)

    async def _hellos(self, number: int) -> None:
        """Hellos that must be refused, each for its reason."""
        cases: list[tuple[dict[str, Any], str]] = [
            *(({"protocol_major": major}, "PROTOCOL_UNSUPPORTED") for major in (0, 2, 7, (1 << 32) - 1)),
            *(({"worker_id": f"w{n + 1}"}, "WORKER_ID_IN_USE") for n in range(4)),
            *(({"worker_id": name}, "INVALID_FIELD") for name in ("", "a b", "x" * 129, "../w1")),
            ({"incarnation": b""}, "INVALID_FIELD"),
            ({"max_epoch_seen": 1 << 32}, "INVALID_FIELD"),
            ({"max_epoch_seen": (1 << 64) - 1}, "INVALID_FIELD"),
            ({"resources": {"cpu": float("nan")}}, "INVALID_FIELD"),
        ]
        for changes, reason in cases:
            worker = self._worker(f"abuse-hello-{number}")
            try:
                await worker.attach(**changes)
                told = "a welcome"
            except AntFarmError as error:
                told = error.reason
            await worker.drop()
            self.calls["hellos"] += 1
            self._demand(told == reason, f"a Hello with {changes} got {told}, not {reason}")
        # The highest epoch that anybody may have seen: the orchestrator goes on above it, and so must its workers.
        worker = self._worker("abuse-far-ahead")
        await worker.attach(max_epoch_seen=EPOCH_SEEN_MAX)
        await worker.goodbye()
        await worker.drop()

    async def _reports(self, number: int) -> None:
        """A worker holds and ends tasks; others claim them, report them, and report what was never issued, before and after."""
        job_id, task_type, count = f"abuse/held-{number}", f"abuse.held-{number}", 4
        async with net.open_channel(self._farm.farm.address) as channel:
            jobs: Any = job_pb2_grpc.JobServiceStub(channel)
            spec = job_pb2.JobSpec(template=common_pb2.TaskTemplate(type=task_type))
            await jobs.CreateJob(
                job_pb2.CreateJobRequest(job_id=job_id, spec=spec, payloads=[b"[]"] * count, close=True)
            )
            holder, forger = self._worker("abuse-holder", task_type, slots=count), self._worker("abuse-forger")
            await holder.attach()
            tokens = await holder.tasks(count)
            welcome = await forger.attach(held=wire.tokens_to_wire(tokens))
            self._demand(
                set(wire.tokens_from_wire(welcome.revoked)) == set(tokens), "a claim in a Hello was not taken back"
            )
            forger.revoked.clear()
            await forger.beat(held=tokens)
            self._demand(set(forger.revoked) == set(tokens), "a claim in a heartbeat was not taken back")
            await self._forge(forger, tokens, {"FENCED"})
            await self._forge(forger, _invented(tokens, welcome.epoch), {"FENCED"})
            await self._forge(holder, _invented(tokens, welcome.epoch), {"FENCED"})
            unknown = [(job_id, count + 3, welcome.epoch, 1), ("abuse/never", 0, welcome.epoch, 1), ("", 0, 0, 0)]
            await self._forge(forger, unknown, {"UNKNOWN_TASK"})
            await self._foreign_log(channel, forger, tokens[0])
            self._demand(await holder.report(*tokens) == ["ACCEPTED"] * count, "the holder's own reports did not count")
            for _ in range(2):
                self._replayed(await holder.report(*tokens, result=b"-1"), {"DUPLICATE"})
                self._replayed(await holder.report(*tokens, ending=FAILED), {"SUPERSEDED"})
                await self._forge(forger, [*tokens, *_invented(tokens, welcome.epoch)], _ENDED)
                await holder.attach(held=(), unacked=wire.tokens_to_wire(tokens))
            results = [
                r async for m in jobs.StreamResults(job_pb2.StreamResultsRequest(job_id=job_id)) for r in m.results
            ]
            told = sorted((r.index, r.state, bytes(r.result)) for r in results)
            right = [(index, common_pb2.TASK_STATE_SUCCEEDED, b"%d" % index) for index in range(count)]
            self._demand(told == right, f"{job_id} has the results {told}")
            await jobs.PurgeJob(job_pb2.PurgeJobRequest(job_id=job_id))
            await self._forge(holder, tokens, {"UNKNOWN_TASK"})
            for worker in (holder, forger):
                await worker.goodbye()
                await worker.drop()

    async def _forge(self, worker: ScriptedWorker, tokens: Sequence[Token], right: set[str]) -> None:
        """Report tokens that are not this worker's, with every ending."""
        for ending in (SUCCEEDED, FAILED, RELEASED, REVOKED):
            self._replayed(await worker.report(*tokens, ending=ending), right)

    def _replayed(self, verdicts: Sequence[str], right: set[str]) -> None:
        self.verdicts.update(verdicts)
        self._demand(
            set(verdicts) <= right, f"reports that must not count were told {dict(Counter(verdicts))}, not {right}"
        )

    async def _foreign_log(self, channel: grpc.aio.Channel, forger: ScriptedWorker, token: Token) -> None:
        """Words of a running attempt count from its holder alone."""
        await forger.say(token, log="forged", progress=0.5, progress_text="forged")
        await self._forge(forger, [token], {"FENCED"})  # the word before it was read by now
        tasks: Any = task_pb2_grpc.TaskServiceStub(channel)
        request = task_pb2.StreamTaskLogsRequest(job_id=token[0], index=token[1])
        told = "".join([message.text async for message in tasks.StreamTaskLogs(request)])
        self._demand(not told, f"the log of {token} holds {told!r}")

    async def _reports_of_the_load(self) -> None:
        """Reports of what the farm's own workers run at this moment, or have just ended: those do not count, and theirs do."""
        tokens = _seen_last(Path(self._farm.path))
        forger = self._worker("abuse-thief")
        await forger.attach(held=wire.tokens_to_wire(tokens))
        await forger.beat(held=tokens)
        for ending in (SUCCEEDED, FAILED, RELEASED):
            self._replayed(await forger.report(*tokens, ending=ending, result=b"-1"), _ENDED)
        await forger.goodbye()
        await forger.drop()


def _is_no_defect(code: grpc.StatusCode, text: str) -> bool:
    """False for what a server answers when it does not know what befell it. INTERNAL is also gRPC's own word for bytes that are no message."""
    if code is grpc.StatusCode.INTERNAL:
        return "internal error" not in text
    return code is not grpc.StatusCode.UNKNOWN


def _padded(method: Method, dice: random.Random, size: int) -> bytes:
    """A message of exactly that size, of a later version: most of it is a field that nobody knows."""
    data = sample(method.request, dice).SerializeToString()
    head = b"\xfa\xff\x03"  # field 8,191, of bytes
    rest = size - len(data) - len(head) - 4
    return (
        data
        + head
        + bytes((rest & 0x7F | 0x80, rest >> 7 & 0x7F | 0x80, rest >> 14 & 0x7F | 0x80, rest >> 21))
        + bytes(rest)
    )


async def _connect(address: str, word: bytes, reset: bool) -> None:
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    with suppress(ConnectionError):
        writer.write(word)
        await writer.drain()
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
        await writer.wait_closed()


async def _reason(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return wire.error_from_rpc(error).reason
    return "it was answered"


def _invented(tokens: Sequence[Token], epoch: int) -> list[Token]:
    """Attempts of these tasks that nobody has issued: others of this epoch, of none, and of epochs to come."""
    return [
        (job_id, index, *other)
        for job_id, index, _, attempt in tokens
        for other in (
            (epoch, attempt + 1),
            (epoch, 0),
            (epoch, (1 << 32) - 1),
            (0, attempt),
            (epoch + 1, 1),
            ((1 << 64) - 1, 1),
        )
    ]


def _seen_last(path: Path, count: int = 40) -> list[Token]:
    """Tokens of the executions that began last."""
    lines = [line.split() for line in path.read_text().splitlines() if line.startswith("begin ")]
    return [(words[1], int(words[2]), int(words[3]), int(words[4])) for words in lines[-count:]]
