"""Addresses, binds and certificates: what is right works, what is not is refused in one line that says what to do."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # must precede the first import of grpc

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from antfarm import errors, net
from antfarm.address import is_host, is_loopback, is_wildcard, own_address, parse_address, reserve
from antfarm.wire import error_from_rpc

# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "node-7.farm.example:1", "[::1]:65535", "localhost:80"])
def test_an_address_is_taken_as_given(address: str) -> None:
    assert parse_address(f" {address}\n") == address


def test_a_port_may_be_left_to_its_default() -> None:
    assert parse_address("node7", default_port=50051) == "node7:50051"
    assert parse_address("[::1]", default_port=50051) == "[::1]:50051"
    assert parse_address("node7:1", default_port=50051) == "node7:1"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "node7",
        ":50051",
        "node7:",
        "node7:0",
        "node7:65536",
        "node7:-1",
        "node7:x",
        "node7:١",
        "::1:50051",
        "[::1]",
        "no de:1",
        "a/b:1",
        "http://node7:1",
    ],
)
def test_what_is_no_address_is_refused_in_one_line(address: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        parse_address(address)
    assert str(caught.value) == f"address {address!r} is not HOST:PORT, e.g. 127.0.0.1:50051"


# ---- binds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("[::1]", True),
        ("0.0.0.0", False), ("::", False), ("[::]", False), ("192.168.1.5", False), ("node7", False), ("", False),
    ],
)  # fmt: skip
def test_serving_beyond_this_machine_without_protection_must_be_asked_for(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    net.check_bind(host, None, insecure=True)
    net.check_bind(host, net.Tls(cert=Path("c"), key=Path("k"), ca=Path("a")), insecure=False)
    if loopback:
        net.check_bind(host, None, insecure=False)
    else:
        with pytest.raises(errors.InvalidArgument, match="give --tls-cert, --tls-key and --tls-ca, or say --insecure"):
            net.check_bind(host, None, insecure=False)


@pytest.fixture
async def server() -> AsyncIterator[grpc.aio.Server]:
    """A server that answers /test/who with the identity of the peer."""
    made = net.make_server()

    async def who(request: bytes, context: Any) -> bytes:
        return repr(net.peer_identity(context.auth_context())).encode()

    handlers = {"who": grpc.unary_unary_rpc_method_handler(who)}
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    yield made
    await made.stop(None)


async def ask(address: str, tls: net.Tls | None) -> str:
    """What /test/who answers."""
    async with net.open_channel(address, tls) as channel:
        answer: bytes = await channel.unary_unary("/test/who")(b"", timeout=5)
    return answer.decode()


@pytest.mark.parametrize("host", ["node1", "node1.example.org", "10.0.0.1", "::1", "[2001:db8::1]"])
def test_a_name_or_an_address_can_be_connected_to(host: str) -> None:
    assert is_host(host)
    assert not is_wildcard(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "[::]", "node1:50051", "10.0.0.1:50051", "a b", "http://node1"])
def test_what_nobody_can_connect_to_is_no_host(host: str) -> None:
    assert not is_host(host)


def test_this_machine_has_an_address_that_others_can_be_told() -> None:
    assert is_host(own_address())


async def test_port_0_picks_a_free_one(server: grpc.aio.Server) -> None:
    port = net.bind(server, "127.0.0.1", 0, None, insecure=False)
    await server.start()
    assert await ask(f"127.0.0.1:{port}", None) == "None"


async def test_a_taken_port_is_named(server: grpc.aio.Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(errors.InvalidArgument) as caught:
            net.bind(server, "127.0.0.1", port, None, insecure=False)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port or stop the program that has it"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_a_host_that_is_not_ours_is_named(host: str, server: grpc.aio.Server) -> None:
    with pytest.raises(errors.InvalidArgument, match=f"cannot listen on {host}:50051: ") as caught:
        net.bind(server, host, 50051, None, insecure=True)
    assert "--host" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", [-1, 65536, 99999])
async def test_a_port_that_cannot_be_is_named(port: int, server: grpc.aio.Server) -> None:
    with pytest.raises(errors.InvalidArgument, match=f"--port {port}: not a port"):
        net.bind(server, "127.0.0.1", port, None, insecure=False)


async def test_ipv6_loopback_works_with_and_without_brackets(server: grpc.aio.Server) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    port = net.bind(server, "::1", 0, None, insecure=False)
    await server.start()
    assert await ask(f"[::1]:{port}", None) == "None"


# ---- certificates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A private CA in a directory."""

    folder: Path
    name: x509.Name
    key: ec.EllipticCurvePrivateKey

    def issue(self, name: str, *uris: str, days: int = 1) -> net.Tls:
        """A certificate for localhost with these identities; `days` may be negative: expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), *(x509.UniformResourceIdentifier(u) for u in uris)]
        certificate = _certificate(name, key, self.name, self.key, days).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        cert, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(_pem(certificate.sign(self.key, hashes.SHA256())))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return net.Tls(cert=cert, key=private, ca=self.folder / "ca.pem")


def authority(folder: Path) -> Authority:
    """A new CA."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test CA {folder.name}")])
    builder = _certificate(f"test CA {folder.name}", key, name, key, 1)
    certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    (folder / "ca.pem").write_bytes(_pem(certificate.sign(key, hashes.SHA256())))
    return Authority(folder=folder, name=name, key=key)


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, issuer_key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    start, end = sorted([now - datetime.timedelta(days=2), now + datetime.timedelta(days=days)])
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


async def start(server: grpc.aio.Server, tls: net.Tls) -> str:
    """Serve with TLS; the address has the name that certificates carry."""
    port = net.bind(server, "127.0.0.1", 0, tls, insecure=False)
    await server.start()
    return f"localhost:{port}"


async def test_programs_with_certificates_of_one_ca_know_each_other(server: grpc.aio.Server, tmp_path: Path) -> None:
    ca = authority(tmp_path / "ours")
    address = await start(server, ca.issue("server"))
    worker = ca.issue("worker", "spiffe://antfarm/worker/north-1")
    assert await ask(address, worker) == "('worker', 'north-1')"
    assert await ask(address, ca.issue("nameless")) == "None"


async def test_peers_without_a_certificate_of_the_ca_are_refused(server: grpc.aio.Server, tmp_path: Path) -> None:
    ours, foreign = authority(tmp_path / "ours"), authority(tmp_path / "foreign")
    address = await start(server, ours.issue("server"))
    good = ours.issue("client")
    stranger = replace(foreign.issue("client"), ca=good.ca)  # trusts our server, is not trusted by it
    expired = ours.issue("old", days=-1)
    for tls in (None, stranger, expired):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(address, tls)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await ask(address, good) == "None"


async def test_a_server_of_another_ca_or_name_is_not_trusted(server: grpc.aio.Server, tmp_path: Path) -> None:
    ours, foreign = authority(tmp_path / "ours"), authority(tmp_path / "foreign")
    address = await start(server, ours.issue("server"))
    right = ours.issue("client")
    for target, tls in [
        (address, replace(right, ca=foreign.folder / "ca.pem")),
        (address.replace("localhost", "127.0.0.1"), right),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(target, tls)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_why_there_is_no_connection_is_said_in_plain_words(server: grpc.aio.Server, tmp_path: Path) -> None:
    ours, foreign = authority(tmp_path / "ours"), authority(tmp_path / "foreign")
    address, good = await start(server, ours.issue("server")), ours.issue("client")

    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def cause(address: str, tls: net.Tls | None) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(address, tls)
        error = error_from_rpc(caught.value)
        assert type(error) is errors.Unavailable
        return str(error)

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as web:
        assert await cause(f"127.0.0.1:{web.sockets[0].getsockname()[1]}", None) == "a web server answers there"
        no_tls = "it serves without TLS: leave out --tls-cert, --tls-key and --tls-ca"
        assert await cause(f"localhost:{web.sockets[0].getsockname()[1]}", good) == no_tls
    asks = "it hung up at once: if it asks for TLS, give --tls-cert, --tls-key and --tls-ca of its CA"
    assert await cause(address, None) == asks
    assert await cause(address, replace(foreign.issue("client"), ca=good.ca)) == asks
    wrong_ca = "its certificate is expired or not of the CA that --tls-ca gives"
    assert await cause(address, replace(good, ca=foreign.folder / "ca.pem")) == wrong_ca
    wrong_name = "its certificate is not for this name: use one of the names in the certificate"
    assert await cause(address.replace("localhost", "127.0.0.1"), good) == wrong_name
    assert await cause("127.0.0.1:1", None) == "connection refused"
    assert await cause("no-such-host.invalid:1", None) == "the name cannot be resolved"


async def test_files_that_do_not_fit_together_are_refused_at_the_start(server: grpc.aio.Server, tmp_path: Path) -> None:
    ca = authority(tmp_path / "ours")
    mixed = replace(ca.issue("one"), key=ca.issue("two").key)
    with pytest.raises(errors.InvalidArgument, match="the TLS files do not fit together"):
        net.bind(server, "127.0.0.1", 0, mixed, insecure=False)


def test_no_tls_files_mean_no_tls() -> None:
    assert net.Tls.from_paths("", "", "") is None


def test_tls_files_are_checked_before_anything_starts(tmp_path: Path) -> None:
    pem, text = tmp_path / "a.pem", tmp_path / "a.txt"
    pem.write_text("-----BEGIN CERTIFICATE-----\n")
    text.write_text("hello")
    assert net.Tls.from_paths(str(pem), str(pem), str(pem)) == net.Tls(cert=pem, key=pem, ca=pem)
    for cert, key, ca, words in [
        (pem, "", pem, "TLS needs --tls-cert, --tls-key and --tls-ca together: --tls-key is missing"),
        (pem, pem, "", "TLS needs --tls-cert, --tls-key and --tls-ca together: --tls-ca is missing"),
        (
            tmp_path / "no.pem",
            pem,
            pem,
            f"--tls-cert {tmp_path}/no.pem: No such file or directory; give the path of a readable PEM file",
        ),
        (pem, tmp_path, pem, f"--tls-key {tmp_path}: Is a directory; give the path of a readable PEM file"),
        (pem, pem, text, f"--tls-ca {text}: not a PEM file"),
    ]:
        with pytest.raises(errors.InvalidArgument) as caught:
            net.Tls.from_paths(str(cert), str(key), str(ca))
        assert str(caught.value) == words


@pytest.mark.parametrize(
    ("names", "identity"),
    [
        ([b"localhost", b"spiffe://antfarm/worker/north-1"], ("worker", "north-1")),
        ([b"spiffe://antfarm/storage-reader/a/b"], ("storage-reader", "a/b")),
        ([b"spiffe://other/worker/x"], None),
        ([b"spiffe://antfarm/worker/"], None),
        ([b"spiffe://antfarm//x"], None),
        ([b"\xff\xfe"], None),
        ([], None),
    ],
)
def test_the_identity_of_a_peer_comes_from_its_certificate(
    names: list[bytes], identity: tuple[str, str] | None
) -> None:
    assert net.peer_identity({"x509_subject_alternative_name": names}) == identity
    assert net.peer_identity({}) is None


def test_grpc_fork_handlers_are_off() -> None:
    """They make children die before exec."""
    assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"


async def test_channels_belong_to_the_running_loop() -> None:
    async with net.open_channel("127.0.0.1:1") as channel:
        assert isinstance(channel, grpc.aio.Channel)
    assert asyncio.get_running_loop().is_running()


async def test_whether_somebody_listens_is_seen_without_a_dial() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert not await net.listens(address)
        server.listen()
        assert await net.listens(address)
    assert not await net.listens(address)


def test_a_reserved_port_is_nobody_elses_and_free_for_who_was_told_it() -> None:
    with reserve("127.0.0.1") as reserved:
        port = reserved.getsockname()[1]
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as told:  # as gRPC does
            told.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            told.bind(("127.0.0.1", port))
            told.listen()
            with pytest.raises(errors.InvalidArgument, match="in use"):
                reserve("127.0.0.1", port)
