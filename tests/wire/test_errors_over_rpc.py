"""An error raised in a servicer arrives at the caller as the same class with the same text, over a real call."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_server import Serve

from antfarm import errors, model, net, wire
from antfarm.interceptor import ErrorInterceptor
from antfarm.v1 import system_pb2


def tree(root: type[errors.AntFarmError]) -> Iterator[type[errors.AntFarmError]]:
    """The class and all below it that the library defines."""
    yield root
    for cls in root.__subclasses__():
        if cls.__module__ == errors.__name__:
            yield from tree(cls)


LOCAL = {errors.PermanentError, *tree(errors.TaskError)}
"""A task's own failures: data on the wire, never an RPC error."""
ROOTS = {
    errors.AntFarmError: errors.Internal,
    errors.UserError: errors.InvalidArgument,
    errors.Weather: errors.Unavailable,
}
"""Roots of families arrive as their most general member."""
TRAVELLING = sorted(set(tree(errors.AntFarmError)) - LOCAL, key=lambda cls: cls.__name__)


async def call(address: str, request: bytes = b"", method: str = "/test/fail", timeout: float = 10) -> bytes:
    """One unary call as the library makes it: errors of the peer become ours."""
    async with net.open_channel(address) as channel:
        try:
            answer: bytes = await channel.unary_unary(method)(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise wire.error_from_rpc(error) from error
    return answer


@pytest.mark.parametrize("cls", TRAVELLING, ids=lambda cls: cls.__name__)
async def test_each_class_arrives_as_itself(cls: type[errors.AntFarmError], serve: Serve) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise cls("the disk of “north” is full: 3 % left")

    address = await serve(fail=fail)
    with pytest.raises(errors.AntFarmError) as caught:
        await call(address)
    assert type(caught.value) is ROOTS.get(cls, cls)
    assert str(caught.value) == "the disk of “north” is full: 3 % left"


def test_each_reason_means_one_class() -> None:
    reasons = [cls.reason for cls in TRAVELLING if cls not in ROOTS]
    assert len(set(reasons)) == len(reasons)
    assert all(reason == reason.upper() and reason.replace("_", "").isalpha() for reason in reasons)


@settings(max_examples=200)
@given(st.text(alphabet=st.characters(), max_size=100), st.none() | st.floats(0, 10**6))
def test_any_text_and_pause_survive_translation(text: str, retry_after_s: float | None) -> None:
    code, line, details = wire.error_to_status(errors.Overloaded(text, retry_after_s))
    trailing = grpc.aio.Metadata((wire.STATUS_DETAILS_KEY, details))
    back = wire.error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=line))
    assert type(back) is errors.Overloaded
    assert str(back) == (text.encode("utf-8", "backslashreplace").decode() or "RESOURCE_EXHAUSTED")
    assert back.retry_after_s == (None if retry_after_s is None else pytest.approx(retry_after_s, abs=1e-6))


async def test_awkward_texts_survive_a_real_call(serve: Serve) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise errors.Conflict(request.decode())

    address = await serve(fail=fail)
    for text in ["100 % sure", "two\nlines\ttab", "\x00\x1b[31mred", "雲 🐜", " spaces ", "x" * 2048]:
        with pytest.raises(errors.Conflict) as caught:
            await call(address, text.encode())
        assert str(caught.value) == text


async def test_a_text_without_end_is_cut_and_still_arrives(serve: Serve) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise errors.InvalidArgument("雲" * 100_000)

    with pytest.raises(errors.InvalidArgument) as caught:
        await call(await serve(fail=fail))
    assert str(caught.value) == "雲" * (2048 // 3)


async def test_the_pause_before_a_retry_arrives(serve: Serve) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise errors.DiskFull("no room", retry_after_s=2.5)

    with pytest.raises(errors.DiskFull) as caught:
        await call(await serve(fail=fail))
    assert caught.value.retry_after_s == 2.5


def test_what_grpc_says_of_a_call_that_ended_while_it_was_written_is_weather() -> None:
    lost = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), details="Internal error from Core"
    )
    assert isinstance(wire.error_from_rpc(lost), errors.Unavailable)


def status_error(code: grpc.StatusCode, details: bytes | None = None) -> grpc.aio.AioRpcError:
    """A failed call as a peer that is not ours ends it."""
    trailing = grpc.aio.Metadata() if details is None else grpc.aio.Metadata((wire.STATUS_DETAILS_KEY, details))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details="words")


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=lambda c: c.name
)
def test_each_bare_code_of_a_foreign_server_has_a_meaning(code: grpc.StatusCode) -> None:
    expected = {
        "CANCELLED": errors.Unavailable,
        "INVALID_ARGUMENT": errors.InvalidArgument,
        "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
        "NOT_FOUND": errors.NotFound,
        "ALREADY_EXISTS": errors.Conflict,
        "PERMISSION_DENIED": errors.PermissionDenied,
        "UNAUTHENTICATED": errors.PermissionDenied,
        "RESOURCE_EXHAUSTED": errors.Overloaded,
        "FAILED_PRECONDITION": errors.WrongState,
        "OUT_OF_RANGE": errors.OutOfRange,
        "UNIMPLEMENTED": errors.ProtocolUnsupported,
        "UNAVAILABLE": errors.Unavailable,
        "DATA_LOSS": errors.DataLoss,
    }
    back = wire.error_from_rpc(status_error(code))
    assert type(back) is expected.get(code.name, errors.Internal)
    assert str(back) == "words"


@given(st.binary(max_size=60))
def test_broken_details_leave_the_code_in_force(details: bytes) -> None:
    assert type(wire.error_from_rpc(status_error(grpc.StatusCode.NOT_FOUND, details))) is errors.NotFound


def test_reasons_of_another_domain_are_not_ours() -> None:
    _, _, details = wire.error_to_status(errors.JobNotFound("x"))
    foreign = details.replace(b"antfarm", b"another")
    assert type(wire.error_from_rpc(status_error(grpc.StatusCode.NOT_FOUND, foreign))) is errors.NotFound


# ---- what is not ours ------------------------------------------------------------------------------------------------


async def test_a_defect_sends_an_id_and_none_of_its_text(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise RuntimeError("password=hunter2")

    with caplog.at_level(logging.ERROR), pytest.raises(errors.Internal) as caught:
        await call(await serve(fail=fail))
    text = str(caught.value)
    number = text.split()[2].rstrip(";")
    assert text == f"internal error {number}; the server's log has the details"
    assert "hunter2" not in text
    (record,) = [r for r in caplog.records if r.name == "antfarm.server"]
    assert record.getMessage() == f"/test/fail failed [{number}]"
    assert "hunter2" in caplog.text


@pytest.mark.parametrize("shape", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_bytes_that_are_no_message_are_the_peers_mistake_and_not_logged(
    shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def once(request: Any, context: Any) -> bytes:
        assert [message async for message in request] == []
        return b""

    async def again(request: Any, context: Any) -> AsyncIterator[bytes]:
        while await context.read() is not grpc.aio.EOF:
            yield b""

    behaviour = {"stream_unary": once, "stream_stream": again}.get(shape, lambda request, context: None)
    handler = getattr(grpc, f"{shape}_rpc_method_handler")(behaviour, system_pb2.GetServerInfoResponse.FromString)
    server = net.make_server([ErrorInterceptor()])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"call": handler}),))
    port = net.bind(server, "127.0.0.1", 0, None, insecure=False)
    await server.start()
    try:
        async with net.open_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream("/test/call")(iter([b"\xff\xff\xff"]), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        back = wire.error_from_rpc(caught.value)
        assert (type(back), back.reason) == (errors.InvalidArgument, "INVALID_FIELD")
    finally:
        await server.stop(None)
    assert caplog.records == []


async def test_a_method_that_its_service_does_not_have_is_no_defect(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise NotImplementedError("Method not implemented!")  # as generated stubs do

    with pytest.raises(errors.ProtocolUnsupported, match="/test/fail is not served here"):
        await call(await serve(fail=fail))
    assert caplog.records == []


async def test_a_service_that_the_peer_does_not_have_is_a_wrong_address(serve: Serve) -> None:
    with pytest.raises(errors.ProtocolUnsupported) as caught:
        await call(await serve())
    assert str(caught.value) == wire.NOT_SERVED


async def test_cancelled_inner_work_becomes_a_status_at_once(serve: Serve) -> None:
    """Otherwise the caller hangs until its deadline."""

    async def fail(request: bytes, context: Any) -> bytes:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        inner.cancel()
        await inner
        return b"never"

    address = await serve(fail=fail)
    async with asyncio.timeout(5):
        with pytest.raises(errors.Unavailable, match="the server is stopping; try again"):
            await call(address, timeout=60)


async def test_streams_end_with_the_error_after_what_was_sent(serve: Serve) -> None:
    async def items(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"
        raise errors.DataLoss("block 3 does not match")

    address = await serve("unary_stream", fail=items)
    async with net.open_channel(address) as channel:
        stream = channel.unary_stream("/test/fail")(b"", timeout=10)
        got = [await stream.read(), await stream.read()]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
    assert got == [b"one", b"two"]
    back = wire.error_from_rpc(caught.value)
    assert (type(back), str(back)) == (errors.DataLoss, "block 3 does not match")


@pytest.mark.parametrize(
    "error",
    [
        errors.Unavailable("the orchestrator is stopping: attach again"),
        grpc.aio.InternalError('Failed "execute_batch"'),  # its client went while something was written to it
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_for_a_call_that_is_over_is_no_defect(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """While a server stops, a call may end between the error and its status. gRPC passes over a handler that ends as cancelled."""

    class Over:
        async def abort(self, *status: Any) -> None:
            raise grpc.aio.InternalError('Failed "execute_batch"')

        def cancelled(self) -> bool:
            return False

        def done(self) -> bool:
            return False

    async def fail(requests: Any, context: Any) -> None:
        raise error

    async def handler(details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(fail)

    details: Any = SimpleNamespace(method="/test/fail")
    wrapped: Any = await ErrorInterceptor().intercept_service(handler, details)
    with pytest.raises(asyncio.CancelledError):
        await wrapped.stream_stream(None, Over())
    assert caplog.records == []


async def test_a_client_that_leaves_while_a_message_waits_for_room_is_no_defect(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    count = 20
    waiting, closed = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def items(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            waiting.release()
            while True:
                yield bytes(1_000_000)
        finally:
            closed.release()

    address = await serve("unary_stream", fail=items)
    async with net.open_channel(address) as channel:
        streams = [channel.unary_stream("/test/fail")(b"") for _ in range(count)]
        for stream in streams:
            assert await stream.read() == b"first"
            await waiting.acquire()
        await asyncio.sleep(0.1)  # until the room is used up: nobody reads on
        for stream in streams:
            stream.cancel()
        async with asyncio.timeout(10):
            for _ in streams:
                await closed.acquire()
    await asyncio.sleep(0)
    assert caplog.records == []


@pytest.mark.parametrize("shape", ["stream_unary", "stream_stream"])
async def test_errors_leave_calls_with_request_streams_too(shape: str, serve: Serve) -> None:
    """Handlers written with read() and write() are coroutines, not generators; both are served."""

    async def fail(requests: Any, context: Any) -> Any:
        assert await context.read() == b"first"
        raise errors.Gap("a batch is missing")

    address = await serve(shape, fail=fail)
    async with net.open_channel(address) as channel:
        stream = getattr(channel, shape)("/test/fail")(timeout=10)
        await stream.write(b"first")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (stream if shape == "stream_unary" else stream.read())
    assert type(wire.error_from_rpc(caught.value)) is errors.Gap


async def test_success_passes_through_untouched(serve: Serve) -> None:
    async def echo(request: bytes, context: Any) -> bytes:
        return request[::-1]

    assert await call(await serve(echo=echo), b"abc", "/test/echo") == b"cba"


async def test_an_unknown_method_says_that_the_versions_differ(serve: Serve) -> None:
    with pytest.raises(errors.ProtocolUnsupported):
        await call(await serve(), method="/test/nothing")


def test_task_errors_say_where_and_how() -> None:
    failure = model.Failure(
        failure_class=model.FailureClass.APP, kind="ValueError", message="no clouds", traceback="Traceback\n  line\n"
    )
    error = errors.TaskFailed(failure, job_id="days", index=7, attempt=2, worker_id="north-1")
    assert str(error) == "task days/7 attempt 2 on north-1: ValueError: no clouds\n\nTraceback\n  line"
    assert (error.job_id, error.index, error.attempt, error.state) == ("days", 7, 2, model.TaskState.FAILED)
    assert set(errors.TASK_ERRORS) == set(model.FailureClass)


def test_every_error_can_be_copied_and_pickled() -> None:
    """Between processes too: an error that a pool cannot read ends the pool."""
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.AntFarmError)]
    failure = model.Failure(failure_class=model.FailureClass.APP, kind="ValueError", message="no clouds")
    for cls in classes:
        if issubclass(cls, errors.TaskError):
            error: errors.AntFarmError = cls(
                failure, state=model.TaskState.EXPIRED, job_id="days", index=7, attempt=2, worker_id="north-1"
            )
        else:
            error = cls("not here", 1.5) if issubclass(cls, errors.Weather) else cls("not here")
        error.add_note("a note")
        for again in (
            copy.copy(error),
            copy.deepcopy(error),
            *(pickle.loads(pickle.dumps(error, n)) for n in range(6)),
        ):
            assert (type(again), str(again), again.args, vars(again)) == (cls, str(error), error.args, vars(error))
    assert len(classes) > 30


async def test_a_failed_write_on_a_call_that_lives_arrives_as_weather(serve: Serve) -> None:
    """Mostly the client has gone; where it has not, it must not wait until its deadline."""

    async def fail(request: bytes, context: Any) -> bytes:
        raise grpc.aio.InternalError('Failed "execute_batch"')

    address = await serve(fail=fail)
    with pytest.raises(errors.Unavailable, match=r"^a write to the connection failed; try again$"):
        await call(address, timeout=5)
