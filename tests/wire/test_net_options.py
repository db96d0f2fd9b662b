"""Each gRPC option of `antfarm.net` does what it is there for: gRPC ignores unknown keys without a word.

Where it is cheap, the same observation is made without the option and must differ, so that a test cannot pass for nothing.
Times are shortened, keys are not: `quick` refuses a key that `antfarm.net` does not set.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import grpc.aio
import pytest
from wire_server import Proxy, Serve, until

from antfarm import errors, model, net

OVER = net.MESSAGE_BYTES_MAX + 65536 + 1


async def echo(request: bytes, context: Any) -> bytes:
    """Answers with what it got."""
    return request


async def size(request: bytes, context: Any) -> bytes:
    """Answers with how much it got, or sends that much where asked by `make:N`."""
    return bytes(int(request[5:])) if request.startswith(b"make:") else str(len(request)).encode()


def quick(options: net.Options, **changes: int) -> list[tuple[str, str | int]]:
    """The options with some values changed; keys written with _ for each dot after "grpc."."""
    known = {key.removeprefix("grpc.").replace(".", "_"): key for key, _ in options}
    assert set(changes) <= set(known)
    return [
        *((k, v) for k, v in options if k not in {known[c] for c in changes}),
        *((known[c], v) for c, v in changes.items()),
    ]


def without(options: net.Options, *names: str) -> list[tuple[str, str | int]]:
    """The options without those whose key ends in one of the names."""
    return [(k, v) for k, v in options if not k.endswith(names)]


def plain_channel(address: str, options: net.Options = ()) -> grpc.aio.Channel:
    """A channel with exactly these options."""
    return grpc.aio.insecure_channel(address, options=list(options))


# ---- sizes -----------------------------------------------------------------------------------------------------------


async def test_messages_of_four_mebibytes_and_their_frame_pass_both_ways(serve: Serve) -> None:
    limit = model.MESSAGE_BYTES_MAX + 65_536
    assert model.MESSAGE_BYTES_MAX == 4 * 1024 * 1024
    address = await serve(echo=echo)
    async with net.open_channel(address) as channel:
        assert len(await channel.unary_unary("/test/echo")(bytes(limit), timeout=20)) == limit


async def test_a_larger_request_is_refused_before_it_is_sent_and_when_it_is_received(serve: Serve) -> None:
    address = await serve(size=size)
    for channel, side in [(net.open_channel(address), "Sent"), (plain_channel(address), "Received")]:
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test/size")(bytes(OVER), timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert side.lower() in str(caught.value.details()).lower()


async def test_a_larger_answer_is_refused_before_it_is_sent_and_when_it_is_received(serve: Serve) -> None:
    unbounded = await serve(options=(), echo=size)
    for address, method, limits in [
        (await serve(size=size), "/test/size", (("grpc.max_receive_message_length", -1),)),
        (unbounded, "/test/echo", net.CHANNEL_OPTIONS),
    ]:
        async with plain_channel(address, limits) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(b"make:%d" % OVER, timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_passes_up_to_its_limit_every_time(serve: Serve) -> None:
    """By default gRPC refuses at random between 8 and 16 KiB."""
    address = await serve(echo=echo)
    async with net.open_channel(address) as channel:
        for _ in range(40):
            await channel.unary_unary("/test/echo")(b"", metadata=[("x-long", "x" * 15_000)], timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test/echo")(b"", metadata=[("x-long", "x" * 40_000)], timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---- flow ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left_out", "pings"), [((), False), (("bdp_probe",), True)], ids=["as set", "without it"])
async def test_a_message_draws_no_ping(serve: Serve, left_out: tuple[str, ...], pings: bool) -> None:
    """Heartbeats are short and seldom: a ping for each, and its answer, would cost as much as they do."""
    address = await serve(options=without(net.SERVER_OPTIONS, *left_out), echo=echo)
    async with (
        Proxy(address) as proxy,
        plain_channel(proxy.address, without(net.CHANNEL_OPTIONS, *left_out)) as channel,
    ):
        for _ in range(10):
            await channel.unary_unary("/test/echo")(b"x", timeout=10)
        assert (proxy.pings_of_client > 0, proxy.pings_of_server > 0) == (pings, pings)


@pytest.mark.parametrize(
    ("left_out", "passes"), [((), True), (("lookahead_bytes",), False)], ids=["as set", "without it"]
)
async def test_a_whole_message_is_on_the_way_before_anybody_reads(
    serve: Serve, left_out: tuple[str, ...], passes: bool
) -> None:
    """With 64 KiB, and no pings that would find out that more is wise, a long message would wait for many answers from a far peer."""
    address = await serve(options=without(net.SERVER_OPTIONS, *left_out), echo=echo)
    async with Proxy(address) as proxy, plain_channel(proxy.address) as channel:
        await channel.unary_unary("/test/echo")(b"x", timeout=10)
        proxy.hold_server()
        call = asyncio.ensure_future(_await(channel, bytes(1 << 20)))
        if passes:
            await until(lambda: proxy.bytes_of_client > 1 << 20)
        else:
            with pytest.raises(TimeoutError):
                await until(lambda: proxy.bytes_of_client > 1 << 20, 0.5)
        call.cancel()


@pytest.mark.parametrize(
    ("left_out", "longest"), [((), 256 * 1024), (("max_frame_size",), 16 * 1024)], ids=["as set", "without it"]
)
async def test_long_messages_travel_in_long_frames(serve: Serve, left_out: tuple[str, ...], longest: int) -> None:
    address = await serve(options=without(net.SERVER_OPTIONS, *left_out), echo=echo)
    async with Proxy(address) as proxy, plain_channel(proxy.address, net.CHANNEL_OPTIONS) as channel:
        await channel.unary_unary("/test/echo")(b"x", timeout=10)
        await channel.unary_unary("/test/echo")(bytes(1 << 20), timeout=10)
        assert proxy.longest_of_client == longest


# ---- ports -----------------------------------------------------------------------------------------------------------


async def test_a_second_server_on_the_port_is_refused_in_one_line(serve: Serve, servers: list[grpc.aio.Server]) -> None:
    address = await serve(echo=echo)
    port = int(address.rpartition(":")[2])
    second = net.make_server()
    servers.append(second)
    with pytest.raises(errors.InvalidArgument) as caught:
        net.bind(second, "127.0.0.1", port, None, insecure=False)
    text = str(caught.value)
    assert text.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port")
    assert "\n" not in text


async def test_grpc_itself_does_not_share_the_port_either(serve: Serve, servers: list[grpc.aio.Server]) -> None:
    """Our probe and gRPC's bind are two moments; in between only so_reuseport=0 refuses."""
    servers += [net.make_server(), grpc.aio.server(options=without(net.SERVER_OPTIONS, "so_reuseport"))]
    ours, loose = servers
    with pytest.raises(RuntimeError, match="Failed to bind"):
        ours.add_insecure_port(await serve(options=net.SERVER_OPTIONS, echo=echo))
    shared = await serve(options=without(net.SERVER_OPTIONS, "so_reuseport"), echo=echo)
    assert loose.add_insecure_port(shared) > 0


# ---- bursts ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_burst_of_calls_is_served_whole(serve: Serve) -> None:
    """Four clients, 1,000 calls each, all at once: none is refused."""
    address = await serve(echo=echo)
    channels = [net.open_channel(address) for _ in range(4)]
    calls = [channel.unary_unary("/test/echo")(b"x", timeout=60) for channel in channels for _ in range(1000)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for channel in channels:
        await channel.close()
    assert [a for a in answers if a != b"x"] == []


@pytest.mark.slow
async def test_streams_on_one_connection_are_bounded_and_the_next_waits(serve: Serve) -> None:
    limit = int(dict(net.SERVER_OPTIONS)["grpc.max_concurrent_streams"])
    waiting = 0

    async def hold(request: bytes, context: Any) -> bytes:
        nonlocal waiting
        waiting += 1
        await asyncio.sleep(60)
        return b""

    address = await serve(options=net.SERVER_OPTIONS, echo=hold)
    async with net.open_channel(address) as channel, net.open_channel(address) as other:
        calls = [asyncio.ensure_future(_await(channel, b"x")) for _ in range(limit + 3)]
        await until(lambda: waiting >= limit, 30)
        calls.append(asyncio.ensure_future(_await(other, b"y")))  # the connection is full, not the server
        await until(lambda: waiting == limit + 1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def _await(channel: grpc.aio.Channel, request: bytes) -> Any:
    return await channel.unary_unary("/test/echo")(request, timeout=60)


# ---- connections -----------------------------------------------------------------------------------------------------


async def test_two_channels_have_two_connections(serve: Serve) -> None:
    """Bulk data must not sit in front of heartbeats."""

    async def connections(options: net.Options) -> int:
        async with Proxy(await serve(echo=echo)) as proxy:
            async with plain_channel(proxy.address, options) as one, plain_channel(proxy.address, options) as two:
                await asyncio.gather(_await(one, b""), _await(two, b""))
            return proxy.connections

    assert await connections(net.CHANNEL_OPTIONS) == 2
    assert await connections(without(net.CHANNEL_OPTIONS, "local_subchannel_pool")) == 1


async def test_a_proxy_variable_of_the_environment_is_ignored(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    address = await serve(echo=echo)
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nobody listens there
    async with net.open_channel(address) as channel:
        assert await _await(channel, b"direct") == b"direct"
    async with plain_channel(address, without(net.CHANNEL_OPTIONS, "http_proxy")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test/echo")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
async def test_a_channel_dials_again_quickly() -> None:
    """By default the second attempt comes after a second, the third after another 1.6, and so on up to two minutes."""

    async def attempts(options: net.Options) -> int:
        dials = 0

        def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal dials
            dials += 1
            writer.close()

        listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with plain_channel(f"127.0.0.1:{port}", options) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/test/echo")(b"", timeout=2.5, wait_for_ready=True)
        listener.close()
        return dials

    bounded = quick(net.CHANNEL_OPTIONS, max_reconnect_backoff_ms=200)
    default, ours, at_most_200_ms = await asyncio.gather(attempts(()), attempts(net.CHANNEL_OPTIONS), attempts(bounded))
    assert default <= 3 < 5 <= ours < at_most_200_ms
    assert at_most_200_ms >= 9


@pytest.mark.slow
async def test_a_slow_handshake_is_given_time(serve: Serve) -> None:
    """A busy server far away answers late; hanging up on it again and again would never connect."""
    async with Proxy(await serve(echo=echo), delay_s=1.5) as proxy, net.open_channel(proxy.address) as channel:
        assert await channel.unary_unary("/test/echo")(b"late", timeout=10, wait_for_ready=True) == b"late"
        assert proxy.connections == 1


async def test_no_call_is_repeated_behind_the_callers_back(serve: Serve) -> None:
    calls = 0

    async def fail(request: bytes, context: Any) -> bytes:
        nonlocal calls
        calls += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        return b""

    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.02s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    address = await serve(options=net.SERVER_OPTIONS, echo=fail)
    for options, expected in [(net.CHANNEL_OPTIONS, 1), (without(net.CHANNEL_OPTIONS, "enable_retries"), 4)]:
        calls = 0
        async with plain_channel(address, [*options, ("grpc.service_config", config)]) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await _await(channel, b"")
        assert calls == expected


# ---- keepalive -------------------------------------------------------------------------------------------------------


async def hold_open(request: bytes, context: Any) -> bytes:
    """Answers after a long time."""
    await asyncio.sleep(60)
    return b""


@pytest.mark.slow
async def test_a_client_notices_a_peer_that_fell_silent(serve: Serve) -> None:
    """A node without power sends no FIN; only an unanswered ping tells."""
    async with Proxy(await serve(echo=hold_open)) as proxy:
        options = quick(net.CHANNEL_OPTIONS, keepalive_time_ms=1000, http2_ping_timeout_ms=300)
        async with plain_channel(proxy.address, options) as channel:
            waiting = asyncio.ensure_future(_await(channel, b""))
            await until(lambda: proxy.pings_of_client >= 1)
            proxy.freeze()
            async with asyncio.timeout(5):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await waiting
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
async def test_a_server_notices_a_peer_that_fell_silent(serve: Serve) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        context.add_done_callback(lambda _: ended.set())
        begun.set()
        await asyncio.sleep(60)
        return b""

    options = quick(net.SERVER_OPTIONS, keepalive_time_ms=1000, http2_ping_timeout_ms=300)
    address = await serve(options=options, echo=wait)
    async with Proxy(address) as proxy, plain_channel(proxy.address) as channel:
        call = asyncio.ensure_future(_await(channel, b""))
        await begun.wait()  # a call that has not arrived is none that could end
        proxy.freeze()
        await asyncio.wait_for(ended.wait(), 5)
        call.cancel()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left_out", "pings_enough"),
    [((), True), (("keepalive_permit_without_calls",), False)],
    ids=["as set", "without keepalive_permit_without_calls"],
)
async def test_idle_connections_are_pinged_and_the_server_bears_it(
    serve: Serve, left_out: tuple[str, ...], pings_enough: bool
) -> None:
    """No call is open and no data flows: pings go on beyond gRPC's default of two, and no GOAWAY answers them."""
    address = await serve(options=net.SERVER_OPTIONS, echo=echo)
    async with Proxy(address) as proxy:
        options = without(quick(net.CHANNEL_OPTIONS, keepalive_time_ms=1000), *left_out)
        async with plain_channel(proxy.address, options) as channel:
            await _await(channel, b"")
            before = proxy.pings_of_client
            if pings_enough:
                await until(lambda: proxy.pings_of_client - before >= 4)
            else:
                with pytest.raises(TimeoutError):
                    await until(lambda: proxy.pings_of_client - before >= 4, 4.5)
            assert proxy.goaways == []
            assert proxy.connections == 1


@pytest.mark.slow
async def test_without_our_options_the_server_calls_such_a_client_too_eager(serve: Serve) -> None:
    names = ("min_ping_interval_without_data_ms", "max_ping_strikes")
    address = await serve(options=without(net.SERVER_OPTIONS, *names), echo=echo)
    async with Proxy(address) as proxy:
        async with plain_channel(proxy.address, quick(net.CHANNEL_OPTIONS, keepalive_time_ms=1000)) as channel:
            await _await(channel, b"")
            await until(lambda: proxy.goaways != [])
        assert proxy.goaways[0] == b"too_many_pings"


@pytest.mark.slow
async def test_the_spelling_of_the_ping_interval_is_the_one_that_works(serve: Serve) -> None:
    """With strikes allowed, an interval below the client's alone keeps the peace."""
    options = quick(net.SERVER_OPTIONS, http2_min_ping_interval_without_data_ms=20, http2_max_ping_strikes=1)
    address = await serve(options=options, echo=echo)
    async with Proxy(address) as proxy:
        async with plain_channel(proxy.address, quick(net.CHANNEL_OPTIONS, keepalive_time_ms=1000)) as channel:
            await _await(channel, b"")
            await until(lambda: proxy.pings_of_client >= 4)
        assert proxy.goaways in ([], [b""])


def test_no_option_is_set_twice() -> None:
    for options in (net.CHANNEL_OPTIONS, net.SERVER_OPTIONS):
        assert len({key for key, _ in options}) == len(options)
