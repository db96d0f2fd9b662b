"""CreateBackup: one at a time, nothing left of it, commits go on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted import orchestrator, refusal

from antfarm.errors import DiskFull, Internal, Overloaded
from antfarm.v1 import backup_pb2, backup_pb2_grpc
from services.orchestrator.journal.backup import restore
from services.orchestrator.journal.base import JournalBroken, JournalFull
from services.orchestrator.journal.sqlite import SqliteJournal

REQUEST = backup_pb2.CreateBackupRequest()


async def read(call) -> bytes:
    return b"".join([message.chunk async for message in call])


async def test_commits_go_on_while_a_backup_is_made_and_it_holds_what_was_acknowledged_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go_on = threading.Event(), threading.Event()
    made = SqliteJournal.back_up

    def slowly(self: SqliteJournal, stopped: Callable[[], bool]) -> Path:
        held.set()
        assert go_on.wait(20)
        return made(self, stopped)

    monkeypatch.setattr(SqliteJournal, "back_up", slowly)
    async with orchestrator(tmp_path / "state") as running:
        await running.create("first", 3)
        stub = backup_pb2_grpc.BackupServiceStub(running.channel)
        call = stub.CreateBackup(REQUEST)
        copying = asyncio.create_task(read(call))
        await asyncio.to_thread(held.wait, 20)
        await running.create("second", 3)
        assert isinstance(await refusal(read(stub.CreateBackup(REQUEST))), Overloaded)
        go_on.set()
        content = await copying
        assert list((tmp_path / "state").glob("backup-*")) == []
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "journal.sqlite").write_bytes(content)
    journal = SqliteJournal(copy)
    assert [r.job_id for _, r in journal.replay() if hasattr(r, "spec")] == ["first", "second"]
    journal.close()


async def test_who_resumes_behind_what_was_lost_hears_of_all_that_ends_after_the_restore(tmp_path: Path) -> None:
    async with orchestrator(tmp_path / "state") as running:
        await running.create("j", 3)
        worker = running.worker()
        await worker.attach()
        await worker.work(1)
        content = await read(backup_pb2_grpc.BackupServiceStub(running.channel).CreateBackup(REQUEST))
        await running.create("lost", 1, type="none")
        await worker.work(1)
        cursor = (await running.messages("j"))[-1].cursor
        await worker.drop()
    (tmp_path / "backup").write_bytes(content)
    restore(tmp_path / "backup", tmp_path / "restored", 0)
    async with orchestrator(tmp_path / "restored") as running:
        worker = running.worker()
        await worker.attach()
        await worker.work(2)
        assert sorted(r.index for r in await running.results("j", cursor=cursor, follow=True)) == [1, 2]
        await worker.drop()


async def test_a_caller_that_goes_away_leaves_no_copy_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, go_on = threading.Event(), threading.Event()
    made = SqliteJournal.back_up

    def slowly(self: SqliteJournal, stopped: Callable[[], bool]) -> Path:
        path = made(self, stopped)
        held.set()
        assert go_on.wait(20)
        return path

    monkeypatch.setattr(SqliteJournal, "back_up", slowly)
    async with orchestrator(tmp_path / "state") as running:
        stub = backup_pb2_grpc.BackupServiceStub(running.channel)
        call = stub.CreateBackup(REQUEST)
        copying = asyncio.create_task(read(call))
        await asyncio.to_thread(held.wait, 20)
        assert len(list((tmp_path / "state").glob("backup-*"))) == 1
        call.cancel()
        await asyncio.wait([copying])
        go_on.set()
        while isinstance(again := await asyncio.gather(read(stub.CreateBackup(REQUEST)), return_exceptions=True), list):
            if isinstance(again[0], bytes):
                break
        assert list((tmp_path / "state").glob("backup-*")) == []


@pytest.mark.parametrize(("error", "told"), [(JournalFull("no room"), DiskFull), (JournalBroken("rot"), Internal)])
async def test_why_no_backup_was_made_is_told_and_the_orchestrator_serves_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
) -> None:
    def fails(self: SqliteJournal, stopped: Callable[[], bool]) -> Path:
        raise error

    monkeypatch.setattr(SqliteJournal, "back_up", fails)
    async with orchestrator(tmp_path / "state") as running:
        stub = backup_pb2_grpc.BackupServiceStub(running.channel)
        assert isinstance(await refusal(read(stub.CreateBackup(REQUEST))), told)
        await running.create("j", 1)


async def test_a_damaged_journal_makes_no_backup(tmp_path: Path) -> None:
    async with orchestrator(tmp_path / "state") as running:
        await running.create("j", 1)
        running.journal._db.execute("UPDATE record SET crc = crc + 1 WHERE kind = 3")
        error = await refusal(read(backup_pb2_grpc.BackupServiceStub(running.channel).CreateBackup(REQUEST)))
        assert isinstance(error, Internal)
        assert "is damaged (its checksum differs)" in str(error)
        assert list((tmp_path / "state").glob("backup-*")) == []
