"""Single flipped bits in what the farm keeps: the content is the same, or the damage is told. `make bit-flips` flips a thousand of each kind."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from journal_records import append_batches, rows

from antfarm.errors import DataLoss, InvalidArgument
from services.orchestrator.journal.base import JournalBroken
from services.orchestrator.journal.sqlite import SqliteJournal
from services.storage.backends.filesystem import FilesystemBackend

FLIPS = int(os.environ.get("ANTFARM_BIT_FLIPS", "60"))
MAIN, WAL = "journal.sqlite", "journal.sqlite-wal"


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def crashed(directory: Path) -> tuple[list, str]:
    """A journal as SIGKILL leaves it: a part in the main file, a part in the log. All its records were acknowledged."""
    journal = SqliteJournal(directory / "live")
    seq = append_batches(journal, 21)
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    seq = append_batches(journal, 19, seq)
    shutil.copytree(directory / "live", directory / "crashed")
    identity = journal.orchestrator_id
    journal.close()
    return rows(1, seq), identity


def start(directory: Path) -> tuple[list, str] | str:
    """What a start reads, or the line with which it is refused."""
    try:
        journal = SqliteJournal(directory)
    except InvalidArgument as error:
        return str(error)
    try:
        return list(journal.replay()), journal.orchestrator_id
    except JournalBroken as error:
        return str(error)
    finally:
        journal.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", [MAIN, WAL, "last commit"])
def test_a_flipped_bit_of_a_journal_changes_nothing_or_is_told(
    tmp_path: Path, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = crashed(tmp_path)
    image = tmp_path / "crashed"
    file = image / (WAL if which != MAIN else MAIN)
    length = file.stat().st_size
    rng = random.Random(8)
    seen: Counter[str] = Counter()
    first = length - 4 * (24 + 4096) if which == "last commit" else 0
    for _ in range(FLIPS):
        bit = rng.randrange(first * 8, length * 8)
        target = tmp_path / "flipped"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(image, target)
        flip(target / file.name, bit)
        caplog.clear()
        found = start(target)
        if isinstance(found, str):
            seen["told"] += 1
            assert "\n" not in found
            assert str(target / MAIN) in found
        else:
            assert found == expected, f"bit {bit} of {file.name} made a silent difference"
            seen["put right" if "put right" in caplog.text else "harmless"] += 1
    print(f"{FLIPS} flips of {which}: {dict(seen)}")  # noqa: T201 - the figures of `make bit-flips`
    assert seen["put right" if which == "last commit" else "told"] > FLIPS // 20


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_flipped_bit_of_a_blob_is_told_when_it_is_read(tmp_path: Path) -> None:
    rng = random.Random(9)
    contents = {f"tasks/j/{n}/1-1/out": rng.randbytes(size) for n, size in enumerate((0, 1, 700, 70_000, 1_200_000))}
    backend = FilesystemBackend.open(tmp_path / "storage")
    for key, content in contents.items():
        writer = await backend.open_write(key)
        await writer.write(content)
        await writer.commit()
    seen: Counter[str] = Counter()
    for _ in range(FLIPS):
        key = rng.choice(list(contents))
        file = tmp_path / "storage/blobs" / f"{key}@"
        bit = rng.randrange(file.stat().st_size * 8)
        flip(file, bit)
        got = b""
        try:
            reader = await backend.open_read(key)
            try:
                while piece := await reader.read():
                    got += piece
            finally:
                await reader.close()
        except DataLoss:
            seen["told"] += 1
            assert contents[key].startswith(got), "a wrong byte was served before the damage was told"
        else:
            assert got == contents[key], f"bit {bit} of {key} made a silent difference"
            seen["harmless"] += 1
        flip(file, bit)
        assert (await backend.verify(key)).size_bytes == len(contents[key])
    await backend.close()
    print(f"{FLIPS} flips of blobs: {dict(seen)}")  # noqa: T201 - the figures of `make bit-flips`
    assert seen["told"] > FLIPS // 2
