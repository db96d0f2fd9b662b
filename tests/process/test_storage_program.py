"""The storage program as a process: start and its refusals, signals, kills, a full disk, memory."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from farm_bench import memory_mib
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import antfarm
from antfarm import net, storage
from antfarm.errors import BlobNotFound, DiskFull, Unavailable
from antfarm.model import BlobRef
from antfarm.storage import Storage

pytestmark = pytest.mark.slow
ROOT = Path(antfarm.__file__).parents[1]
MIB = 1024 * 1024


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


class Program:
    """A storage program on a free port, in a process group of its own, whose log is kept."""

    def __init__(self, directory: Path, *flags: str, port: int = 0, **extra: str) -> None:
        self.directory = directory
        self.log = directory.parent / "storage.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "services.storage",
                    "--port",
                    str(port),
                    "--backend",
                    f"file:{directory}",
                    *flags,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(**extra),
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("storage ready on "), self.log.read_text()
        self.address = line.split()[-1]
        self.port = int(self.address.rpartition(":")[2])

    def temporaries(self) -> list[str]:
        return os.listdir(self.directory / "tmp")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(timeout_s)

    def rss_mib(self) -> float:
        return memory_mib(self.process.pid)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def start(*flags: str, directory: Path | None = None, port: int = 0, **extra: str) -> Program:
        programs.append(Program(directory or tmp_path / "s", *flags, port=port, **extra))
        return programs[-1]

    yield start
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
        program.wait()


def refusal(*flags: str, **extra: str) -> str:
    """The one line of a program that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "services.storage", "--port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment(**extra),
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


# ---- start ------------------------------------------------------------------------------------------------------------


def test_it_serves_health_and_reflection_and_ends_on_sigterm(start: Callable[..., Program]) -> None:
    """The standard services answer; SIGTERM ends the program with code 0."""
    program = start()
    with grpc.insecure_channel(program.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "antfarm.v1.BlobService", "antfarm.v1.SystemService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = reflection.ServerReflectionInfo(iter([request]), timeout=10)
        names = {service.name for service in listed.list_services_response.service}
        assert {"antfarm.v1.BlobService", "antfarm.v1.SystemService", "grpc.health.v1.Health"} <= names
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


def test_the_default_directory_follows_the_xdg_variable(tmp_path: Path) -> None:
    """Without --backend blobs lie under XDG_STATE_HOME, and the directories on the way are made."""
    process = subprocess.Popen(
        [sys.executable, "-m", "services.storage", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(XDG_STATE_HOME=str(tmp_path / "state")),
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("storage ready on 127.0.0.1:")
    assert (tmp_path / "state/antfarm/storage/blobs").is_dir()
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_supervisors_are_told(start: Callable[..., Program], tmp_path: Path) -> None:
    """READY=1 when it serves, WATCHDOG=1 while it lives, STOPPING=1 when it drains (the sd_notify protocol)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(20)
        program = start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
        assert supervisor.recv(100) == b"READY=1"
        assert supervisor.recv(100) == b"WATCHDOG=1"
        program.signal(signal.SIGTERM)
        while (state := supervisor.recv(100)) == b"WATCHDOG=1":
            pass
        assert state == b"STOPPING=1"
        assert program.wait() == 0


def test_a_port_in_use_is_one_line(start: Callable[..., Program], tmp_path: Path) -> None:
    """The second program on a port says so and ends with code 2."""
    program = start()
    line = refusal("--port", str(program.port), "--backend", f"file:{tmp_path / 'other'}")
    assert line == (
        f"storage: cannot listen on 127.0.0.1:{program.port}: Address already in use; "
        "choose another --port or stop the program that has it"
    )


def test_a_directory_in_use_is_one_line(start: Callable[..., Program]) -> None:
    """Two storages never share a directory, however the first was started."""
    program = start()
    line = refusal("--backend", f"file:{program.directory}")
    assert line.endswith(f"another storage (process {program.process.pid}) uses this directory")


@pytest.mark.parametrize(
    ("backend", "line"),
    [
        ("s3://bucket/prefix", "s3:// is not in this version; give file:DIR"),
        ("az://container", "az:// is not in this version; give file:DIR"),
        ("ftp://host", "unknown; give file:DIR"),
        ("/some/dir", "unknown; give file:DIR"),
        ("file:", "unknown; give file:DIR"),
        ("file://host/dir", "a file URL has three slashes; give file:DIR"),
        ("file:TMP/no/such/parent", "its parent directory does not exist; create it"),
        ("file:TMP/a-file", "a part of the path is not a directory"),
        ("file:TMP/a-file/s", "a part of the path is not a directory"),
        ("file:TMP/full", "not empty and not a storage directory; give another one"),
        ("file:TMP/newer", "format 99 is not known to this version, which knows 1"),
        ("file:TMP/broken", "storage.json is damaged; restore it from a backup"),
        ("file:/proc/storage", "No such file or directory; give a directory that can be written"),
    ],
)
def test_a_backend_that_cannot_serve_is_one_line(tmp_path: Path, backend: str, line: str) -> None:
    """Every such mistake ends with code 2 and one line that names the backend and says what to do."""
    (tmp_path / "a-file").write_text("x")
    for name, file, content in (
        ("full", "x", "x"),
        ("newer", "storage.json", '{"format": 99, "server_id": "x"}'),
        ("broken", "storage.json", "{"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
    backend = backend.replace("TMP", str(tmp_path))
    assert refusal("--backend", backend) == f"storage: --backend {backend}: {line}"


def test_a_bind_beyond_this_machine_needs_tls_or_a_loud_word(start: Callable[..., Program], tmp_path: Path) -> None:
    """0.0.0.0 is refused without TLS; --insecure serves, warns, and says so to who asks."""
    line = refusal("--host", "0.0.0.0", "--backend", f"file:{tmp_path / 's'}")
    assert line.startswith("storage: --host 0.0.0.0 is reachable from other machines")
    program = start("--host", "0.0.0.0", "--insecure")
    assert "insecure: anybody who reaches 0.0.0.0" in program.log.read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB of its own."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"needs the right to mount a tmpfs: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_directory_that_cannot_be_written_is_one_line(small_disk: Path) -> None:
    """A read-only file system is refused at the start, not at the first blob."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    line = refusal("--backend", f"file:{small_disk / 's'}")
    assert line.endswith("Read-only file system; give a directory that can be written")


# ---- a full disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_keeps_nothing(start: Callable[..., Program], small_disk: Path) -> None:
    """Whether the size is known or not: DiskFull, nothing kept, old blobs readable, and writing goes on when there is space."""
    program = start(directory=small_disk / "s")
    with Storage(program.address) as client:
        first = client.put("first", os.urandom(8 * MIB))
        for data in (bytes(40 * MIB), (bytes(MIB) for _ in range(40))):
            with pytest.raises(
                DiskFull,
                match=r"^storage is full \(No space left on device\); nothing was kept, free some space there$",
            ):
                client.put("a/b/second", data)
            assert program.temporaries() == []
        assert [blob.key for blob in client.list()] == ["first"]
        assert not (small_disk / "s/blobs/a").exists()
        assert hashlib.sha256(client.get(first)).digest() == first.sha256
        client.put("a/b/second", bytes(8 * MIB))
        client.delete("first")
        client.put("third", bytes(12 * MIB))
    assert "Traceback" not in program.log.read_text()


def test_running_out_of_directory_entries_is_a_full_disk(start: Callable[..., Program], small_disk: Path) -> None:
    """A file system without free inodes refuses in the same words, and no half-made directories stay."""
    subprocess.run(["mount", "-o", "remount,nr_inodes=14", str(small_disk)], check=True)
    program = start(directory=small_disk / "s")
    with Storage(program.address) as client:
        with pytest.raises(DiskFull, match="nothing was kept"):
            client.put("/".join("abcdefghijklmnop"), b"x")
        assert os.listdir(small_disk / "s/blobs") == []
        client.put("a/b", b"x")
        assert client.get("a/b") == b"x"


# ---- signals and kills --------------------------------------------------------------------------------------------------


def test_sigterm_lets_a_write_end(start: Callable[..., Program], tmp_path: Path) -> None:
    """A stream that ends within the grace is committed; new calls are refused meanwhile."""
    program = start("--drain-s", "20")
    stopping = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield bytes(MIB)
        assert stopping.wait(20)
        yield bytes(MIB)

    result: list[BlobRef] = []
    with Storage(program.address) as client:
        writer = threading.Thread(target=lambda: result.append(client.put("k", pieces())))
        writer.start()
        wait_until(lambda: program.temporaries() != [])
        program.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in program.log.read_text())
        with pytest.raises(OSError, match="refused"), socket.socket() as probe:
            wait_refused(probe, program.port)
        stopping.set()
        writer.join(20)
    assert [blob.size_bytes for blob in result] == [2 * MIB]
    assert program.wait() == 0
    program = start()
    with Storage(program.address) as client:
        assert client.verify("k") == result[0]


def wait_refused(probe: socket.socket, port: int) -> None:
    """Connect until it is refused: closing the port is not atomic with the log line."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", port)):
            time.sleep(0.02)


def test_sigterm_cuts_a_write_that_does_not_end(start: Callable[..., Program]) -> None:
    """After the grace the stream is cut, its client told, nothing of it kept, and the exit code is still 0."""
    program = start("--drain-s", "0.3")
    ended = threading.Event()

    def pieces() -> Iterator[bytes]:
        while not ended.wait(0.05):
            yield bytes(MIB)

    errors: list[BaseException] = []

    def write(client: Storage) -> None:
        try:
            client.put("k", pieces())
        except Unavailable as error:
            errors.append(error)

    with Storage(program.address) as client:
        writer = threading.Thread(target=write, args=(client,))
        writer.start()
        wait_until(lambda: program.temporaries() != [])
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
        writer.join(20)
        ended.set()
    assert len(errors) == 1
    assert program.temporaries() == []
    assert os.listdir(program.directory / "blobs") == []
    assert "Traceback" not in program.log.read_text()


def test_a_killed_storage_keeps_what_it_told_and_nothing_else(start: Callable[..., Program]) -> None:
    """SIGKILL in the middle of a write: after the restart the acknowledged blobs are there, whole, and the rest is swept."""
    program = start()
    gate = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield bytes(MIB)
        yield bytes(MIB)
        assert gate.wait(20)
        yield bytes(MIB)

    with Storage(program.address) as client:
        told = [client.put(f"told/{index}", os.urandom(100_000)) for index in range(20)]
        errors: list[BaseException] = []

        def write() -> None:
            try:
                client.put("half", pieces())
            except Unavailable as error:
                errors.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        wait_until(lambda: program.temporaries() != [])
        program.signal(signal.SIGKILL)
        program.wait()
        gate.set()
        writer.join(20)
        assert [str(error).startswith(f"storage at {program.address} ") for error in errors] == [True]
        assert program.temporaries() != []
        program = start(port=program.port)
        assert program.temporaries() == []
        assert list(client.list()) == sorted(told, key=lambda blob: blob.key)
        for blob in told:
            assert client.verify(blob.key) == blob
        with pytest.raises(BlobNotFound):
            client.stat("half")


def test_a_put_survives_a_kill_of_storage(start: Callable[..., Program]) -> None:
    """A write that can be repeated is, without its caller noticing, and gives one blob."""
    program = start()
    content = os.urandom(64 * MIB)
    result: list[BlobRef] = []
    with Storage(program.address) as client:
        writer = threading.Thread(target=lambda: result.append(client.put("k", content)))
        writer.start()
        wait_until(lambda: program.temporaries() != [])
        program.signal(signal.SIGKILL)
        program.wait()
        start(port=program.port)
        writer.join(60)
        assert [blob.sha256 for blob in result] == [hashlib.sha256(content).digest()]
        assert client.verify("k") == result[0]


CLIENT = """
import sys
from antfarm.storage import Storage
def pieces():
    for _ in range(30):
        yield bytes(1024 * 1024)
    print("sent", flush=True)
    sys.stdin.read()
Storage(sys.argv[1]).put("k", pieces())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_dies_leaves_nothing(start: Callable[..., Program], number: int) -> None:
    """A dead client's stream ends like one that is done; nothing of it becomes a blob."""
    program = start()
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, program.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "sent\n"
    assert program.temporaries() != []
    client.send_signal(number)
    client.communicate(timeout=20)
    wait_until(lambda: program.temporaries() == [])
    with Storage(program.address) as other:
        assert list(other.list()) == []
    assert "Traceback" not in program.log.read_text()


# ---- memory -----------------------------------------------------------------------------------------------------------


def test_memory_does_not_follow_the_size_of_blobs(start: Callable[..., Program], tmp_path: Path) -> None:
    """384 MiB in, out and verified: the program holds less than half of it, whatever gRPC and the allocator keep while the disk stalls."""
    program = start()
    size = 384 * MIB
    with Storage(program.address) as client:
        client.put("warm", bytes(8 * MIB))
        client.get("warm")
        before = highest = program.rss_mib()

        def pieces() -> Iterator[bytes]:
            nonlocal highest
            for _ in range(size // MIB):
                yield bytes(MIB)
                highest = max(highest, program.rss_mib())

        blob = client.put("large", pieces())
        received = 0
        for piece in client.stream(blob):
            received += len(piece)
            highest = max(highest, program.rss_mib())
        client.verify("large")
        highest = max(highest, program.rss_mib())
    assert received == size
    assert highest - before < size / MIB / 2, f"{before:.0f} MiB became {highest:.0f} MiB"


# ---- TLS --------------------------------------------------------------------------------------------------------------


def test_tls_files_that_are_missing_are_one_line(tmp_path: Path) -> None:
    """All three or none, said before anything is made."""
    cert, key, _ = certificates(tmp_path, "farm")
    line = refusal("--tls-cert", str(cert), "--tls-key", str(key), "--backend", f"file:{tmp_path / 's'}")
    assert line == "storage: TLS needs --tls-cert, --tls-key and --tls-ca together: --tls-ca is missing"
    assert not (tmp_path / "s").exists()


def certificates(directory: Path, name: str) -> list[Path]:
    """Certificate, key and CA file of a new CA with one certificate for 127.0.0.1."""
    now = datetime.datetime.now(datetime.UTC)
    issuer, subject = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name} {k}")]) for k in ("CA", "node"))
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def certificate(whose: x509.Name, public_key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(issuer, whose, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(hours=1))
        signed = builder.add_extension(extension, critical=False).sign(ca_key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    contents = [
        certificate(subject, key.public_key(), alternative),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
        certificate(issuer, ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=None)),
    ]
    paths = [directory / f"{name}-{kind}.pem" for kind in ("cert", "key", "ca")]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def test_mutual_tls(start: Callable[..., Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blobs travel between certificates of one CA; another CA's client and a client without TLS get nothing."""
    cert, key, ca = certificates(tmp_path, "farm")
    program = start("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(ca))
    with Storage(program.address, net.Tls(cert=cert, key=key, ca=ca)) as client:
        assert client.get(client.put("k", bytes(3 * MIB))) == bytes(3 * MIB)
    other_cert, other_key, _ = certificates(tmp_path, "other")
    monkeypatch.setattr(storage, "_PAUSES_MAX_S", (0.01,))
    for tls in (net.Tls(cert=other_cert, key=other_key, ca=ca), None):
        with Storage(program.address, tls) as client, pytest.raises(Unavailable):
            client.get("k")
