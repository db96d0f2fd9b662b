"""A generic server and channel with the project's own options, on a free loopback port."""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # must precede the first import of grpc

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from wire_server import Serve

from antfarm import net
from antfarm.interceptor import ErrorInterceptor


@pytest.fixture
async def servers() -> AsyncIterator[list[grpc.aio.Server]]:
    """Servers put in here are stopped after the test, also those that never started."""
    made: list[grpc.aio.Server] = []
    yield made
    for server in made:
        await server.stop(None)


@pytest.fixture
def serve(servers: list[grpc.aio.Server]) -> Serve:
    """`await serve(method=handler, ...)` starts a server as every program makes it and returns its address.

    A handler is a coroutine or an async generator of (request, context) on plain bytes; its shape is told by `streams`.
    With `options` the server is a bare one that has exactly these.
    """

    async def start(
        streams: str = "unary_unary", options: net.Options | None = None, **methods: Callable[..., Any]
    ) -> str:
        server = net.make_server([ErrorInterceptor()]) if options is None else grpc.aio.server(options=list(options))
        servers.append(server)
        make = getattr(grpc, f"{streams}_rpc_method_handler")
        handlers = {name: make(handler) for name, handler in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return f"127.0.0.1:{port}"

    return start
