"""Backups of a running orchestrator, and new starts from them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import antfarm
from antfarm.local import LocalFarm
from services.orchestrator.core.records import EpochStarted
from services.orchestrator.journal.backup import EPOCHS_SKIPPED, SEQS_SKIPPED
from services.orchestrator.journal.sqlite import SqliteJournal

pytestmark = pytest.mark.slow
APP = str(Path(__file__).parent / "chaos_app.py")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "antfarm.cli", *words], capture_output=True, text=True, timeout=60)


def records(directory: Path) -> list:
    journal = SqliteJournal(directory)
    try:
        return list(journal.replay())
    finally:
        journal.close()


def test_a_backup_made_under_load_holds_all_that_was_acknowledged_and_starts_again(tmp_path: Path) -> None:
    backup = tmp_path / "farm.backup"
    with LocalFarm(tmp_path / "farm") as farm:
        farm.start_orchestrator()
        with antfarm.connect(farm.address) as client:
            client.map("nobody.runs.this", range(1000), job_id="before")
            done = command("-c", farm.address, "backup", str(backup))
            assert done.returncode == 0, done.stderr
            client.map("nobody.runs.this", range(10), job_id="after")
        assert command("-c", farm.address, "backup", str(backup)).returncode == 2  # never in place of another
        live = farm.state_dir / "orchestrator"
        refused = command("restore", str(backup), "--state", str(live))
        assert (refused.returncode, "is used by another orchestrator" in refused.stderr) == (2, True)
        farm.kill("orchestrator")
        assert not list(live.glob("backup-*"))
        refused = command("restore", str(backup), "--state", str(live))
        assert (refused.returncode, "has a journal: move it away" in refused.stderr) == (2, True)

        all_records = records(live)
        live.rename(tmp_path / "lost")
        restored = command("restore", str(backup), "--state", str(live))
        assert (restored.returncode, restored.stdout) == (0, ""), restored.stderr
        assert "1 jobs with 1000 tasks" in restored.stderr
        kept = records(live)
        assert kept[:-1] == all_records[: len(kept) - 1]
        last = kept[-1][1]
        assert kept[-1][0] - kept[-2][0] == SEQS_SKIPPED
        assert isinstance(last, EpochStarted)
        assert (last.epoch, last.history_gap) == (1 + EPOCHS_SKIPPED, True)

        farm.restart("orchestrator")
        shown = command("-c", farm.address, "--output", "json", "version", "--server")
        assert "history_gap" in shown.stdout
        assert "history_gap: the journal once went back in time" in farm.program("orchestrator").log.read_text()
        with antfarm.connect(farm.address) as client:
            assert [job.job_id for job in client.jobs()] == ["before"]


@pytest.mark.parametrize("harm", ["cut", "flip", "other", "missing", "empty"])
def test_what_is_no_whole_backup_is_refused_and_leaves_no_journal(tmp_path: Path, harm: str) -> None:
    with LocalFarm(tmp_path / "farm") as farm:
        farm.start_orchestrator()
        with antfarm.connect(farm.address) as client:
            client.map("nobody.runs.this", [("x" * 50_000)] * 3, job_id="j")
        backup = tmp_path / "b"
        assert command("-c", farm.address, "backup", str(backup)).returncode == 0
    content = backup.read_bytes()
    match harm:
        case "cut":
            backup.write_bytes(content[: len(content) // 2])
        case "flip":
            at = len(content) * 2 // 3
            backup.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        case "other":
            backup.write_text("not a journal " * 1000)
        case "missing":
            backup.unlink()
        case "empty":
            backup.write_bytes(b"")
    state = tmp_path / "state"
    done = command("restore", str(backup), "--state", str(state))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert not (state / "journal.sqlite").exists()
    assert not (state / "restoring").exists()
    if harm in ("other", "empty"):
        assert done.stderr == f"antfarm: {backup} is not a backup of an orchestrator; `antfarm backup FILE` makes one\n"
        assert not state.exists()
    good = tmp_path / "good"
    good.write_bytes(content)
    assert command("restore", str(good), "--state", str(state)).returncode == 0
