"""Which outputs are orphans, and what the sweeper deletes of them."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from antfarm.errors import BlobNotFound, Unavailable, WrongState
from antfarm.files import write_durably
from antfarm.v1 import job_pb2
from services.storage import sweeper as sweeper_module
from services.storage.backends.filesystem import FilesystemBackend
from services.storage.core.sweep import (
    UNKNOWN,
    Ages,
    Standing,
    Task,
    ancestors,
    concerned,
    is_from_above,
    is_orphan,
    owners,
    shows_top,
)
from services.storage.keys import check_key
from services.storage.sweeper import Sweeper

DAY = 86400.0
AGES = Ages(ended_s=DAY, unknown_s=7 * DAY)
LIVE = Standing(live=True)
KEY = "tasks/j/3/2-1/out.bin"


@pytest.mark.parametrize(
    ("key", "tasks"),
    [
        ("tasks/j/3/2-1/out.bin", (("j", 3),)),
        ("tasks/a/b/c/0/10-12/deep/er", (("a/b/c", 0),)),
        ("tasks/j/3/2-1/4/5-6/x", (("j", 3), ("j/3/2-1", 4))),
        ("tasks/j/3/2-1", ()),
        ("tasks/j/x/2-1/out", ()),
        ("tasks/j/03/2-1/out", ()),
        ("tasks/j/999999999999999999/2-1/out", (("j", 10**18 - 1),)),
        ("tasks/j/1000000000000000000/2-1/out", ()),
        ("tasks/j/3/2-1/9999999999999999999/5-6/x", (("j", 3),)),
        ("tasks/3/2-1/out", ()),
        ("payloads/ab", ()),
        ("mine/j/3/2-1/out", ()),
    ],
)
def test_a_key_tells_whose_output_it_may_be(key: str, tasks: tuple[Task, ...]) -> None:
    assert owners(key) == tasks


@pytest.mark.parametrize(("digits", "levels"), [(18, 0), (18, 16), (19, 0), (19, 1), (19, 15), (20, 0), (20, 15)])
def test_every_task_that_a_key_leads_to_can_be_asked_for(digits: int, levels: int) -> None:
    """One key whose question cannot be put would stop all sweeping, for any client may write it."""
    index = "9" * digits
    key = check_key(f"tasks/{'up/' * levels}j{f'/{index}/relay-' * levels}/{index}/1-1/x")
    for job_id, number in concerned(key):
        assert job_pb2.StreamResultsRequest(job_id=job_id, indices=[number]).indices == [number]


def test_a_job_from_above_tells_the_tasks_it_was_made_for() -> None:
    assert ancestors(("j", 1)) == ()
    assert ancestors(("up/j/4/tasks", 1)) == (("j", 4),)
    assert ancestors(("up/up/j/4/tasks/7/plan", 0)) == (("up/j/4/tasks", 7), ("j", 4))
    assert ancestors(("up/j/4/relay-9", 3)) == (("j", 7),)
    assert ancestors(("up/up/j/4/relay-9/2/relay-1", 5)) == (("up/j/4/relay-9", 7), ("j", 11))
    assert ancestors(("up/strange", 0)) == ()
    assert ancestors(("up/j/9999999999999999999/relay-9", 3)) == ()


@pytest.mark.parametrize(
    ("standing", "goes_at"),
    [
        (LIVE, None),
        (Standing(ended=True), DAY),
        (UNKNOWN, 7 * DAY),
        (Standing(ended=True, keys=frozenset([KEY])), None),
        (Standing(ended=True, results=(b'{"$file":{"key":"' + KEY.encode() + b'"}}',)), None),
        (Standing(ended=True, keys=frozenset(["tasks/j/3/2-2/out.bin"])), DAY),
        (Standing(ended=True) | LIVE, None),
    ],
)
def test_only_what_no_outcome_names_goes_and_not_before_its_time(standing: Standing, goes_at: float | None) -> None:
    for age in (0.0, DAY - 1, DAY, 7 * DAY - 1, 7 * DAY, 1e9):
        assert is_orphan(KEY, age, {("j", 3): standing}, AGES) == (goes_at is not None and age >= goes_at)


def test_what_was_made_for_a_task_from_above_stays_as_long_as_that_is_known() -> None:
    key, child, parent = "tasks/up/j/4/tasks/1/2-1/o", ("up/j/4/tasks", 1), ("j", 4)
    for above in (LIVE, Standing(ended=True)):
        assert not is_orphan(key, 1e9, {child: UNKNOWN, parent: above}, AGES)
        assert is_orphan(key, 1e9, {child: Standing(ended=True), parent: above}, AGES)
    assert not is_orphan(
        key, 1e9, {child: Standing(ended=True), parent: Standing(ended=True, keys=frozenset([key]))}, AGES
    )
    assert is_orphan(key, 1e9, {child: UNKNOWN, parent: UNKNOWN}, AGES)


def test_a_name_that_looks_like_a_token_is_swept_only_when_no_reading_of_it_objects() -> None:
    key = "tasks/j/3/2-1/4/5-6/x"
    for first, second in itertools.product((LIVE, Standing(ended=True), UNKNOWN), repeat=2):
        standings = {("j", 3): first, ("j/3/2-1", 4): second}
        goes = LIVE not in (first, second)
        assert is_orphan(key, 1e9, standings, AGES) == goes
        assert is_orphan(key, 2 * DAY, standings, AGES) == (first == second == Standing(ended=True))


def test_a_task_whose_standing_is_missing_is_an_error_and_no_unknown_one() -> None:
    with pytest.raises(KeyError):
        is_orphan(KEY, 1e9, {}, AGES)


class FakeRecord:
    """Answers from dictionaries, and does something in the middle of an answer."""

    def __init__(self) -> None:
        self.ids = frozenset({"journal-1"})
        self.known: dict[Task, Standing] = {}
        self.asked: list[Task] = []
        self.fails = False

    async def identities(self) -> frozenset[str]:
        return self.ids

    async def standings(self, tasks: Iterable[Task]) -> dict[Task, Standing]:
        if self.fails:
            raise Unavailable("no answer")
        asked = sorted(tasks)
        self.asked += asked
        return {task: self.known.get(task, UNKNOWN) for task in asked}

    async def close(self) -> None: ...


class Place:
    """A storage directory with a sweeper on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.backend = FilesystemBackend.open(path)
        self.record = FakeRecord()

    def sweeper(self, *, dry_run: bool = False) -> Sweeper:
        return Sweeper(self.backend, self.record, self.path / "record.json", AGES, dry_run=dry_run)  # type: ignore[arg-type]

    async def put(self, key: str, age_s: float = 0.0) -> None:
        writer = await self.backend.open_write(key)
        await writer.write(key.encode())
        await writer.commit()
        self.age(key, age_s)

    def age(self, key: str, age_s: float) -> None:
        file = self.path / "blobs" / f"{key}@"
        written = file.stat().st_mtime - age_s
        os.utime(file, (written, written))

    async def there(self, key: str) -> bool:
        try:
            await self.backend.verify(key)
        except BlobNotFound:
            return False
        return True


@pytest.fixture
async def place(tmp_path: Path):
    made = Place(tmp_path / "storage")
    yield made
    await made.backend.close()


async def test_losers_of_ended_tasks_go_and_winners_live_ones_and_strangers_stay(place: Place) -> None:
    await place.put("tasks/j/0/1-1/o", 2 * DAY)
    await place.put("tasks/j/0/1-2/o", 2 * DAY)
    await place.put("tasks/j/1/1-1/o", 300 * DAY)
    await place.put("tasks/gone/0/1-1/o", 6 * DAY)
    await place.put("tasks/older/0/1-1/o", 8 * DAY)
    await place.put("payloads/x", 300 * DAY)
    await place.put("tasks/no-token/o", 300 * DAY)
    place.record.known = {("j", 0): Standing(ended=True, keys=frozenset(["tasks/j/0/1-2/o"])), ("j", 1): LIVE}
    dry = await place.sweeper(dry_run=True).sweep()
    assert (dry.orphans, await place.there("tasks/j/0/1-1/o")) == (2, True)
    swept = await place.sweeper().sweep()
    assert (swept.seen, swept.orphans) == (6, 2)
    left = [blob.key for blob in await place.backend.list_page("", after="", limit=100)]
    assert left == ["payloads/x", "tasks/gone/0/1-1/o", "tasks/j/0/1-2/o", "tasks/j/1/1-1/o", "tasks/no-token/o"]


async def test_a_damaged_orphan_goes_like_any_other_and_stops_no_sweep(place: Place) -> None:
    await place.put("tasks/j/0/1-1/o", 2 * DAY)
    file = place.path / "blobs/tasks/j/0/1-1/o@"
    file.write_bytes(b"rot")
    place.age("tasks/j/0/1-1/o", 2 * DAY)
    place.record.known = {("j", 0): Standing(ended=True)}
    assert (await place.sweeper().sweep()).orphans == 1
    assert not file.exists()


async def test_nothing_goes_when_the_record_cannot_be_consulted(place: Place) -> None:
    await place.put("tasks/gone/0/1-1/o", 300 * DAY)
    place.record.fails = True
    with pytest.raises(Unavailable):
        await place.sweeper().sweep()
    assert await place.there("tasks/gone/0/1-1/o")


async def test_another_journal_is_not_believed(place: Place) -> None:
    """An orchestrator on a new, empty journal knows no task: that must not make every output an orphan."""
    assert (await place.sweeper().sweep()).seen == 0
    assert json.loads((place.path / "record.json").read_text()) == {"orchestrators": ["journal-1"]}
    await place.put("tasks/j/0/1-1/o", 300 * DAY)
    for ids in ({"journal-2"}, {"journal-1", "journal-2"}, set()):
        place.record.ids = frozenset(ids)
        with pytest.raises(WrongState, match=r"delete .*record\.json if that is right"):
            await place.sweeper().sweep()
    assert await place.there("tasks/j/0/1-1/o")
    (place.path / "record.json").unlink()
    place.record.ids = frozenset({"journal-2"})
    assert (await place.sweeper().sweep()).orphans == 1


async def test_a_journal_that_changes_while_it_is_asked_is_not_believed(place: Place) -> None:
    await place.put("tasks/j/0/1-1/o", 300 * DAY)
    answer = place.record.standings

    async def exchanged(tasks: Iterable[Task]) -> dict[Task, Standing]:
        place.record.ids = frozenset({"journal-2"})
        return await answer(tasks)

    place.record.standings = exchanged  # type: ignore[method-assign]
    with pytest.raises(WrongState):
        await place.sweeper().sweep()
    assert await place.there("tasks/j/0/1-1/o")


CHILD, PARENT = ("up/j/0/relay-1", 2), ("j", 2)
FROM_ABOVE = "tasks/up/j/0/relay-1/2/1-1/o"


@pytest.mark.parametrize("below", [UNKNOWN, Standing(ended=True)])
async def test_what_was_made_for_a_task_from_above_goes_only_where_the_one_at_the_top_is_asked(
    place: Place, below: Standing
) -> None:
    """A cluster soon forgets what it did for the orchestrator above: where that one is not asked, nobody tells that it still names the output."""
    await place.put(FROM_ABOVE, 300 * DAY)
    await place.put("tasks/gone/0/1-1/o", 8 * DAY)
    place.record.known = {CHILD: below}
    swept = await place.sweeper().sweep()
    assert (swept.seen, swept.orphans, swept.kept) == (2, 1, 1)
    assert await place.there(FROM_ABOVE)

    place.record.known[PARENT] = Standing(ended=True, keys=frozenset([FROM_ABOVE]))
    swept = await place.sweeper().sweep()
    assert (swept.seen, swept.orphans, swept.kept) == (1, 0, 0)
    assert json.loads((place.path / "record.json").read_text()) == {"orchestrators": ["journal-1"], "top": True}

    del place.record.known[PARENT]  # purged in its time
    swept = await place.sweeper().sweep()
    assert (swept.seen, swept.orphans, swept.kept) == (1, 1, 0)
    assert not await place.there(FROM_ABOVE)


async def test_that_the_one_at_the_top_was_asked_is_forgotten_with_the_journals(place: Place) -> None:
    await place.put(FROM_ABOVE, 300 * DAY)
    place.record.known = {PARENT: LIVE}
    await place.sweeper().sweep()
    (place.path / "record.json").unlink()
    place.record.known = {}
    swept = await place.sweeper().sweep()
    assert (swept.orphans, swept.kept) == (0, 1)


async def test_what_is_kept_for_want_of_the_one_at_the_top_is_told(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await place.put(FROM_ABOVE, 8 * DAY)
    sweeper = place.sweeper()
    running = asyncio.create_task(sweeper.run())
    async with asyncio.timeout(10):
        while not sweeper.trouble:
            assert not running.done()
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert sweeper.trouble == (
        "1 outputs of tasks from an orchestrator above are kept, for no orchestrator of --sweep-for knows a job that they were made for;"
        " name all above those whose workers write here"
    )
    assert f"sweep: {sweeper.trouble}" in caplog.messages
    assert await place.there(FROM_ABOVE)


@pytest.mark.parametrize(
    ("known", "shows"),
    [
        (set(), False),
        ({("up/up/j/4/relay-9/2/relay-1", 5)}, False),
        ({("up/j/4/relay-9", 7)}, False),  # one in the middle, whose own record is not the last word
        ({("j", 11)}, True),
    ],
)
def test_only_a_task_that_others_were_made_for_and_that_was_made_for_none_shows_the_top(
    known: set[Task], shows: bool
) -> None:
    key = "tasks/up/up/j/4/relay-9/2/relay-1/5/1-1/o"
    assert is_from_above(key)
    assert shows_top({task: LIVE if task in known else UNKNOWN for task in concerned(key)}) == shows
    assert not is_from_above(KEY)
    assert not shows_top({("j", 3): LIVE})


async def test_young_outputs_cost_no_question(place: Place) -> None:
    await place.put("tasks/j/0/1-1/o", DAY - 60)
    await place.sweeper().sweep()
    assert place.record.asked == []


@pytest.mark.parametrize(
    ("error", "trouble", "level"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device", logging.WARNING),
        (TimeoutError(), "TimeoutError()", logging.WARNING),
        (Unavailable("no answer"), "no answer", logging.WARNING),
        (ValueError("a mistake of ours"), "ValueError('a mistake of ours')", logging.ERROR),
    ],
)
async def test_no_error_ends_the_sweeper_each_is_told_and_the_next_turn_goes_on(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    trouble: str,
    level: int,
) -> None:
    await place.put("tasks/gone/0/1-1/o", 8 * DAY)
    sweeper = place.sweeper()
    told: list[str] = []

    def fails_once(path: Path, text: str) -> None:
        told.append(sweeper.trouble)
        if len(told) == 1:
            raise error
        write_durably(path, text)

    monkeypatch.setattr(sweeper_module, "write_durably", fails_once)
    monkeypatch.setattr(sweeper_module, "RETRY_S", 0.0)
    running = asyncio.create_task(sweeper.run())
    async with asyncio.timeout(10):
        while await place.there("tasks/gone/0/1-1/o") or sweeper.trouble:
            assert not running.done()
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert told == ["", trouble]
    assert [record.levelno for record in caplog.records if record.levelno >= logging.WARNING] == [level]


def test_a_file_whose_sync_failed_is_not_synced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, synced = os.fsync, []

    def fails_once(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        if len(synced) == 1:
            kept.append(os.dup(fd))  # its number is not given to another file meanwhile
            raise OSError(errno.EIO, "Input/output error")
        sync(fd)

    kept: list[int] = []
    monkeypatch.setattr(os, "fsync", fails_once)
    with pytest.raises(OSError, match="Input/output error"):
        write_durably(tmp_path / "record.json", "first")
    write_durably(tmp_path / "record.json", "second")
    os.close(kept.pop())
    assert (tmp_path / "record.json").read_text() == "second"
    assert len(set(synced)) == 2


@pytest.mark.parametrize("seed", range(20))
async def test_lives_of_tasks_with_sweeps_between_never_lose_an_output_that_counts(place: Place, seed: int) -> None:
    """Attempts write, are lost, come late, win; sweeps happen at any moment, also between an answer of the record and the next success."""
    rng = random.Random(seed)
    winner: dict[int, str] = {}
    live: dict[int, list[str]] = {}
    ended: set[int] = set()

    async def step() -> None:
        index = rng.randrange(5)
        task = ("j", index)
        attempts = live.setdefault(index, [])
        match rng.choice(("write", "write", "win", "fail", "age", "purge")):
            case "write":  # a new attempt, or a zombie of one whose task has ended
                key = f"tasks/j/{index}/1-{len(attempts) + 1}/o"
                attempts.append(key)
                await place.put(key)
                if index not in ended:
                    place.record.known[task] = LIVE
            case "win" if attempts and index not in ended and place.record.known.get(task) is LIVE:
                winner[index] = rng.choice(attempts)  # often that of an attempt given up for lost
                place.record.known[task] = Standing(ended=True, keys=frozenset([winner[index]]))
                ended.add(index)
            case "fail" if index not in ended and attempts:
                place.record.known[task] = Standing(ended=True)
                ended.add(index)
            case "age":
                for key in [*itertools.chain(*live.values())]:
                    if await place.there(key):
                        place.age(key, 3 * DAY)
            case "purge" if index in ended and rng.random() < 0.2:
                place.record.known.pop(task, None)
                winner.pop(index, None)

    answer = place.record.standings

    async def slow(tasks: Iterable[Task]) -> dict[Task, Standing]:
        found = await answer(tasks)
        for _ in range(rng.randrange(4)):
            await step()
        return found

    place.record.standings = slow  # type: ignore[method-assign]
    deleted = 0
    for _ in range(60):
        await step()
        if rng.random() < 0.3:
            deleted += (await place.sweeper().sweep()).orphans
            for key in winner.values():
                assert await place.there(key)
            for index, keys in live.items():
                if index not in ended:
                    assert all([await place.there(key) for key in keys])
    assert deleted


def test_concerned_are_all_readings_and_what_is_above_them() -> None:
    assert concerned("tasks/up/j/4/tasks/1/2-1/o") == {("up/j/4/tasks", 1), ("j", 4)}
