"""The event loop of programs and of the library: uvloop, or asyncio's own where that is not installed."""

from __future__ import annotations

import asyncio


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop that does not turn yet. Everything runs on either; gRPC's messages take 5 to 20 % less time on uvloop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
