"""The committed stubs are those of the protos, and the protos keep the rules of the protocol."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import verify_protos

from antfarm import model
from antfarm.v1 import common_pb2, job_pb2, report_queue_pb2

ROOT = Path(__file__).resolve().parents[2]
BUF = ROOT / "node_modules" / ".bin" / "buf"
needs_buf = pytest.mark.skipif(not BUF.exists(), reason="buf is not installed: run `npm install` in the project's root")


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Freshly generated stubs."""
    target = tmp_path_factory.mktemp("stubs")
    verify_protos.generate(target)
    return target / "antfarm" / "v1"


@pytest.mark.slow
def test_committed_stubs_are_what_the_protos_generate(stubs: Path) -> None:
    assert verify_protos.differences(stubs, ROOT / "antfarm" / "v1") == []


@pytest.mark.slow
def test_each_kind_of_drift_is_named(stubs: Path, tmp_path: Path) -> None:
    committed = tmp_path / "v1"
    shutil.copytree(stubs, committed)
    (committed / "job_pb2.py").write_text("# by hand\n")
    (committed / "blob_pb2.pyi").unlink()
    (committed / "old_pb2.py").write_text("")
    assert verify_protos.differences(stubs, committed) == [
        "blob_pb2.pyi: generated but not committed",
        "old_pb2.py: committed but no .proto generates it",
        "job_pb2.py: differs from what protos/ generates",
    ]
    assert verify_protos.main(committed) == 1


@needs_buf
@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["lint"], ["format", "-d", "--exit-code"]], ids=["lint", "format"])
def test_buf_finds_no_fault(arguments: list[str]) -> None:
    """STANDARD names and layout, and a comment on every message, field, rpc and enum value."""
    done = subprocess.run([BUF, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_numbers_of_enumerations_equal_those_of_the_model() -> None:
    """Adapters pass the numbers through."""
    pairs = [
        (model.TaskState, common_pb2.TaskState, "TASK_STATE_"),
        (model.FailureClass, common_pb2.FailureClass, "FAILURE_CLASS_"),
        (model.DependencyKind, common_pb2.DependencyKind, "DEPENDENCY_KIND_"),
        (model.JobState, job_pb2.JobState, "JOB_STATE_"),
        (model.Ending, report_queue_pb2.Ending, "ENDING_"),
        (model.VerdictCode, report_queue_pb2.VerdictCode, "VERDICT_CODE_"),
    ]
    for ours, theirs, prefix in pairs:
        wire = {name.removeprefix(prefix): number for name, number in theirs.items() if number}
        assert wire == {member.name: member.value for member in ours}, ours.__name__


def test_every_enumeration_has_an_unspecified_zero_and_dense_small_numbers() -> None:
    for file in (common_pb2, job_pb2, report_queue_pb2):
        for enum in file.DESCRIPTOR.enum_types_by_name.values():
            assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")
            assert sorted(enum.values_by_number) == list(range(len(enum.values)))
