"""Server side of errors: raise our exceptions in a servicer, and the peer gets a status; anything else is a defect.

One interceptor for all programs, so that no servicer calls `abort`. An unexpected exception becomes INTERNAL with an id; its text
stays in our log, because it may hold what the peer must not see.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from antfarm.errors import AntFarmError, Internal, InvalidArgument, Unavailable
from antfarm.wire import STATUS_DETAILS_KEY, error_to_status

log = logging.getLogger("antfarm.server")

Context = grpc.aio.ServicerContext[Any, Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns exceptions of servicers into statuses."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler; the four shapes differ in how they are called only."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = str(handler_call_details.method)
        wrap = _wrap_stream if handler.response_streaming else _wrap_unary
        name = {
            (False, False): "unary_unary",
            (False, True): "unary_stream",
            (True, False): "stream_unary",
            (True, True): "stream_stream",
        }[handler.request_streaming, handler.response_streaming]
        make = getattr(grpc, f"{name}_rpc_method_handler")
        behaviour = wrap(getattr(handler, name), method)
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            behaviour,
            request_deserializer=_lenient(handler.request_deserializer, handler.request_streaming),
            response_serializer=handler.response_serializer,
        )
        return wrapped


def _lenient(deserializer: Callable[[bytes], Any] | None, streaming: bool) -> Callable[[bytes], Any] | None:
    """A deserializer for which bytes that are no message are the peer's mistake. gRPC takes its exception for a defect of ours and logs a traceback.

    In a stream it raises where the behaviour reads. A single request is read before the behaviour begins: there the error takes its place.
    """
    if deserializer is None:
        return None

    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            error = InvalidArgument("these bytes are no message that this call takes")
        if streaming:
            raise error
        return error

    return deserialize


def _wrap_unary(behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        try:
            _demand_message(request)
            return await behaviour(request, context)
        except (Exception, asyncio.CancelledError) as error:
            del request  # see _abort
            await _abort(context, method, error)

    return call


def _wrap_stream(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> None:
        try:
            _demand_message(request)
            answer = behaviour(request, context)
            if hasattr(answer, "__aiter__"):
                # Written here and not by gRPC, which logs a defect when the client leaves while a message waits for room.
                async with aclosing(answer):
                    async for message in answer:
                        await context.write(message)
            else:
                await answer
        except (Exception, asyncio.CancelledError) as error:
            del request  # see _abort
            await _abort(context, method, error)

    return call


def _demand_message(request: Any) -> None:
    if isinstance(request, InvalidArgument):
        raise request


def told(error: BaseException, method: str) -> AntFarmError:
    """What a peer is told of an exception: ours as it is; of a defect the number under which our log has it."""
    if isinstance(error, AntFarmError):
        return error
    if isinstance(error, grpc.aio.InternalError):
        # Mostly the client is gone, as whoever tells it finds out: no defect to log. A call that lives must get its status.
        return Unavailable("a write to the connection failed; try again")
    number = secrets.token_hex(4)
    log.exception("%s failed [%s]", method, number, exc_info=error)
    return Internal(f"internal error {number}; the server's log has the details")


async def _abort(context: Context, method: str, error: BaseException) -> NoReturn:
    """End the call with the status of an error.

    gRPC keeps the exception of an abort in a circle with the frames that it went through, and what these hold stays until the next garbage
    collection. Requests may be large and refusals many, so neither these frames nor those of the error may hold the request.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if context.cancelled() or (task is not None and task.cancelling()):
            raise error
        # A CancelledError of inner work must become a status, or the client hangs until its deadline.
        error = Unavailable("the server is stopping; try again")
    if not isinstance(error, AntFarmError):
        if isinstance(error, grpc.aio.AbortError | grpc.aio.UsageError) or context.done():
            raise error
        if isinstance(error, NotImplementedError):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here")  # as a stub says it
        error = told(error, method)
    code, text, details = error_to_status(error)
    error.__traceback__ = None
    try:
        await context.abort(code, text, ((STATUS_DETAILS_KEY, details),))
    except grpc.aio.InternalError:
        # The call is over and this side has not been told yet: nobody can hear the status, and gRPC would log a defect.
        raise asyncio.CancelledError from None
