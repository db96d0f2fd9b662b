"""`python -m clouds.standin` announces itself, obeys signals, and says what it cannot use in one line."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from pathlib import Path

import aiohttp
import pytest
from PIL import Image

from clouds.box import Box
from clouds.errors import ServiceDown
from clouds.service import Service
from clouds.standin.__main__ import main
from clouds.worldview import fetch, open_session

ROOT = Path(__file__).parents[2]
BOX = Box(lat_min=40, lon_min=5, lat_max=44, lon_max=10)
NOW = datetime(2021, 6, 1, 12, tzinfo=UTC)


async def run(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "clouds.standin", *arguments,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A running stand-in and its port; killed at the end where the test has not ended it."""
    process = await run(*arguments)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        assert line.startswith("stand-in ready on 127.0.0.1:"), line + (await process.stderr.read()).decode()
        yield process, int(line.rpartition(":")[2])
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_and_a_signal_ends_it_at_once(number: signal.Signals) -> None:
    """Also in the middle of an answer that would take an hour."""
    async with program("--generated-ground", "--fault", "2021-05-04=drip:seconds=3600") as (process, port):
        service = Service(base_url=f"http://127.0.0.1:{port}/api/v1/snapshot", km=4)
        async with open_session(service) as session:
            shot = await fetch(session, service, BOX, date(2021, 5, 3), now=lambda: NOW)
            assert (shot.width, shot.height) == (106, 114)
            slow = asyncio.create_task(fetch(session, service, BOX, date(2021, 5, 4), now=lambda: NOW))
            async with asyncio.timeout(20):
                while (await stats(session, port))["concurrent"] != 1:  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(0.01)
            process.send_signal(number)
            out, err = await asyncio.wait_for(process.communicate(), 10)
            assert (process.returncode, out, err) == (0, b"", b"")
            with pytest.raises(ServiceDown):
                await slow


async def stats(session: aiohttp.ClientSession, port: int) -> dict[str, int]:
    async with session.get(f"http://127.0.0.1:{port}/stats") as response:
        told: dict[str, int] = await response.json()
        return told


@pytest.mark.slow
async def test_two_programs_of_one_seed_serve_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "faults.json").write_text(json.dumps({"2021-05-03": ["http503*1"]}))
    bodies = []
    for _ in range(2):
        options = ("--seed", "9", "--faults", str(tmp_path / "faults.json"), "--no-orbit-gaps", "--no-night")
        async with program(*options, "--realistic", "--latency", "0.001") as (_, port):
            service = Service(base_url=f"http://127.0.0.1:{port}/api/v1/snapshot", km=8)
            async with open_session(service) as session:
                with pytest.raises(ServiceDown):
                    await fetch(session, service, BOX, date(2021, 5, 3), now=lambda: NOW)
                bodies.append((await fetch(session, service, BOX, date(2021, 5, 3), now=lambda: NOW)).body)
    assert bodies[0] == bodies[1]


@pytest.mark.slow
async def test_it_serves_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), (1, 90, 60)).save(tmp_path / "2021-05-03.jpg")
    async with program("--dir", str(tmp_path)) as (_, port):
        service = Service(base_url=f"http://127.0.0.1:{port}/api/v1/snapshot", width=50, height=40)
        async with open_session(service) as session:
            shot = await fetch(session, service, BOX, date(2021, 5, 3), now=lambda: NOW)
            assert shot.body == (tmp_path / "2021-05-03.jpg").read_bytes()


@pytest.mark.slow
async def test_a_taken_port_is_one_line_and_exit_code_2() -> None:
    async with program("--generated-ground") as (_, port):
        other = await run("--generated-ground", "--port", str(port))
        out, err = await asyncio.wait_for(other.communicate(), 30)
        assert (other.returncode, out) == (2, b"")
        line = f"stand-in: 127.0.0.1:{port} is in use; choose another --port, or 0 for any free one\n"
        assert err.decode() == line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fault", "2021-05-03=storm"], "fault 'storm' is unknown"),
        (["--faults", "no/such/file.json"], "No such file"),
        (["--dir", "no/such/folder"], "is not a folder"),
        (["--port", "70000"], "port 70000 is not within 0..65535"),
        (["--latency", "-1"], "is not within 0..3600"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0"),
    ],
)
def test_what_it_cannot_use_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--generated-ground", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err
    assert told.err.count("\n") == 1
