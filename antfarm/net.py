"""Every gRPC option, credential, channel and server of the project is made here.

What each option is for stands beside it; tests/wire has a behaviour test for each, because gRPC ignores unknown keys without a
word. A channel or server belongs to the event loop in which it is made: call these inside the running coroutine.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "GRPC_ENABLE_FORK_SUPPORT", "0"
)  # fork handlers make children die before exec; must precede the import

# Its own lines would tell of every stranger's handshake, in a form of their own; what concerns us comes as an error.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from antfarm.address import is_loopback, join_address, reserve
from antfarm.errors import InvalidArgument
from antfarm.model import MESSAGE_BYTES_MAX

Options = Sequence[tuple[str, str | int]]

_LISTENS_TIMEOUT_S = 1.0
"""For a host that does not even refuse."""
CALL_ENDED = (asyncio.InvalidStateError, grpc.aio.InternalError)
"""What gRPC raises when something is written to a call that has ended, or its writing is closed. The call's status, if anybody reads it, says why."""
DIAL_TIMEOUT_S = 5.0
"""How long a program waits for its first connection before it says that the address cannot be reached."""

_MESSAGE_OPTIONS: Options = (
    # One explicit limit both ways; the frames we build stay under it (model.BATCH_BYTES_MAX). The headroom is for framing.
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX + 65536),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX + 65536),
    ("grpc.max_metadata_size", 16 * 1024),
)

_KEEPALIVE_OPTIONS: Options = (
    # Finds half-open connections. Leases decide about life and death; this only frees the sockets.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The answer to a ping counts by this, 60 s by default: keepalive_timeout alone notices nothing while a peer's kernel still acknowledges.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

_FLOW_OPTIONS: Options = (
    # By default each side sends a ping with nearly every message that it gets, to measure how much can be on the way: a third of what a heartbeat costs.
    ("grpc.http2.bdp_probe", 0),
    # Without that a stream has at most so much on the way that nobody has read: the longest message, where the default is 64 KiB.
    ("grpc.http2.lookahead_bytes", MESSAGE_BYTES_MAX),
    # And no frame is longer than this, where the default of 16 KiB costs a tenth more for bulk.
    ("grpc.http2.max_frame_size", 256 * 1024),
)

CHANNEL_OPTIONS: Options = (
    *_MESSAGE_OPTIONS,
    *_FLOW_OPTIONS,
    *_KEEPALIVE_OPTIONS,
    # The session dials with its own jitter; the channel's back-off stays below it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # In spite of its name the time that one attempt may take, TLS handshake included; the pauses above are not lengthened by it.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # Retries are decided by callers that know what is idempotent.
    ("grpc.enable_retries", 0),
    # A proxy variable of the environment must not catch traffic between nodes.
    ("grpc.enable_http_proxy", 0),
    # Two channels to one address get connections of their own: bulk data must not sit in front of heartbeats.
    ("grpc.use_local_subchannel_pool", 1),
)

SERVER_OPTIONS: Options = (
    *_MESSAGE_OPTIONS,
    *_FLOW_OPTIONS,
    *_KEEPALIVE_OPTIONS,
    # Otherwise eager clients get "too_many_pings". The popular min_recv_ping_... spelling is ignored by gRPC.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # By default a second server shares the port without a word.
    ("grpc.so_reuseport", 0),
    # By default bursts above 1,000 new calls are refused at random.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.max_concurrent_streams", 1_024),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files of mutual TLS: this program's certificate and key, and the CA that every peer's certificate must come from."""

    cert: Path
    key: Path
    ca: Path

    @classmethod
    def from_paths(cls, cert: str, key: str, ca: str) -> Tls | None:
        """TLS of three paths; None when all are empty. InvalidArgument when only some are given or one cannot be read."""
        given = {"--tls-cert": cert, "--tls-key": key, "--tls-ca": ca}
        if not any(given.values()):
            return None
        for flag, path in given.items():
            if not path:
                raise InvalidArgument(f"TLS needs --tls-cert, --tls-key and --tls-ca together: {flag} is missing")
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                raise InvalidArgument(
                    f"{flag} {path}: {error.strerror}; give the path of a readable PEM file"
                ) from None
            if b"-----BEGIN " not in content:
                raise InvalidArgument(f"{flag} {path}: not a PEM file")
        return cls(cert=Path(cert), key=Path(key), ca=Path(ca))

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a server that demands a client certificate of our CA."""
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.cert.read_bytes())],
            root_certificates=self.ca.read_bytes(),
            require_client_auth=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a client that trusts our CA only."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes(),
            private_key=self.key.read_bytes(),
            certificate_chain=self.cert.read_bytes(),
        )


async def listens(address: str) -> bool:
    """True when somebody takes connections there. Costs next to nothing where nobody does."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_LISTENS_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def check_bind(host: str, tls: Tls | None, *, insecure: bool) -> None:
    """Refuse to serve beyond this machine without TLS, unless the operator said so loudly (semantics S1)."""
    if not is_loopback(host) and tls is None and not insecure:
        raise InvalidArgument(
            f"--host {host} is reachable from other machines: give --tls-cert, --tls-key and --tls-ca, "
            "or say --insecure to serve without protection"
        )


def open_channel(address: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """A channel to `address`; with TLS both ends show certificates of the same CA. Close it with `await channel.close()`."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=list(CHANNEL_OPTIONS))
    return grpc.aio.secure_channel(address, tls.channel_credentials(), options=list(CHANNEL_OPTIONS))


def make_server(interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> grpc.aio.Server:
    """A server without port; add services, then `bind`, then start."""
    return grpc.aio.server(interceptors=list(interceptors), options=list(SERVER_OPTIONS))


def bind(server: grpc.aio.Server, host: str, port: int, tls: Tls | None, *, insecure: bool) -> int:
    """Bind and return the port (port 0 picks a free one).

    InvalidArgument in one line when the port is taken, the host is not ours, or `check_bind` refuses.
    """
    check_bind(host, tls, insecure=insecure)
    reserve(host, port).close()  # gRPC reports a failed bind without its cause
    address = join_address(host, port)
    try:
        if tls is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, tls.server_credentials())
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise InvalidArgument(f"cannot listen on {address}: the port is in use or the TLS files do not fit together")
    return int(bound)


def peer_identity(auth_context: Mapping[str, Sequence[bytes]]) -> tuple[str, str] | None:
    """(role, id) of a peer from the URI `spiffe://antfarm/<role>/<id>` in its certificate; None without such a certificate."""
    for name in auth_context.get("x509_subject_alternative_name", ()):
        text = name.decode("utf-8", "replace")
        if text.startswith("spiffe://antfarm/"):
            role, _, identity = text.removeprefix("spiffe://antfarm/").partition("/")
            if role and identity:
                return role, identity
    return None
