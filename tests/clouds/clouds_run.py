"""Runs of the real program against the stand-in, and a look into Storage afterwards."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from antfarm.storage import Storage
from clouds import farm
from clouds.__main__ import main

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "worldview"
BOX = "40,5,44,10"
SIZE = "160x200"
FIRST = date(2021, 6, 1)


def days_from(first: date, count: int) -> list[date]:
    return [first + timedelta(days=number) for number in range(count)]


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A stand-in that outlives runs."""

    root: str

    @property
    def url(self) -> str:
        return f"{self.root}/api/v1/snapshot"

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.root}/stats") as answer:
            told: dict[str, Any] = json.load(answer)
        return told

    def get(self, url: str) -> bytes:
        with urllib.request.urlopen(url) as answer:
            body: bytes = answer.read()
        return body


_ROOTS: set[str] = set()
"""Addresses of all stand-ins so far: what they served lies in Storage under it, and the system gives a free port out again."""


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Server]:
    """A stand-in at an address that none had before."""
    with contextlib.ExitStack() as stack:
        root = ""
        while root in {"", *_ROOTS}:  # one that got a known address keeps it until another is found
            root = stack.enter_context(farm.standin("--generated-ground", "--no-orbit-gaps", *arguments))()
        _ROOTS.add(root)
        yield Server(root=root)


def arguments_for(server: Server, out: Path, first: date, count: int, *more: str, seed: int = 1) -> list[str]:
    """Of a run; runs of the same seed share their series."""
    last = first + timedelta(days=count - 1)
    return [
        *("--source", "standin", "--calm", "--seed", str(seed), "--service-url", server.url),
        *("--start", first.isoformat(), "--end", last.isoformat(), "--bbox", BOX, "--size", SIZE),
        *("--out", str(out), *more),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What came of a run: exit code, what it printed, its series."""

    code: int
    out: list[str]
    err: list[str]
    series: dict[date, dict[str, str]]

    @property
    def statuses(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for row in self.series.values():
            found[row["status"]] = found.get(row["status"], 0) + 1
        return found


def run(arguments: list[str]) -> Ran:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return ran(code, arguments, out.getvalue(), err.getvalue())


def ran(code: int, arguments: list[str], out: str, err: str) -> Ran:
    folder = Path(arguments[arguments.index("--out") + 1])
    return Ran(code=code, out=out.splitlines(), err=err.splitlines(), series=read_series(folder))


def read_series(folder: Path) -> dict[date, dict[str, str]]:
    path = folder / "series.csv"
    if not path.is_file():
        return {}
    with path.open() as text:
        return {date.fromisoformat(row["day"]): row for row in csv.DictReader(text)}


def popen(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "clouds", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


# ---- Storage ----------------------------------------------------------------------------------------------------------


def blobs(storage: Storage, prefix: str = "clouds/") -> dict[str, bytes]:
    """All that is stored under a prefix."""
    return {blob.key: storage.get(blob.key) for blob in storage.list(prefix)}


def series_of(server: Server, stored: dict[str, bytes]) -> str:
    """Key of the one series of the pictures that this server gave."""
    sources = {key: json.loads(content)["url"] for key, content in stored.items() if key.endswith("/source.json")}
    (series,) = {key.split("/")[1] for key, url in sources.items() if url.startswith(server.root)}
    return series


def results(stored: dict[str, bytes]) -> list[dict[str, Any]]:
    """Every result.json."""
    return [json.loads(content) for key, content in stored.items() if key.endswith("/result.json")]


def assert_nothing_false(stored: dict[str, bytes]) -> None:
    """Every picture that was downloaded decodes whole and is what its facts say; every result is of such a picture."""
    for key, content in stored.items():
        folder, _, name = key.rpartition("/")
        if name in ("source.jpg", "source.png", "bands721.jpg", "bands721.png"):
            facts = json.loads(stored[f"{folder}/{name.split('.')[0]}.json"])
            assert facts["key"] == key
            assert facts["sha256"] == hashlib.sha256(content).hexdigest()
            assert facts["bytes"] == len(content)
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                assert image.size == (facts["width"], facts["height"])
        elif name == "result.json":
            source = json.loads(stored[f"{folder.rpartition('/')[0]}/source.json"])
            assert json.loads(content)["sha256"] == source["sha256"]
        elif name.endswith((".jpg", ".png")):
            with Image.open(io.BytesIO(content)) as image:
                image.load()
