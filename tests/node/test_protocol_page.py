"""docs/protocol.md is true: its worker works, and it names every frame, verdict, reason and form that there is."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import antfarm as af
from antfarm import errors
from antfarm.v1 import common_pb2, report_queue_pb2, work_queue_pb2

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


@pytest.fixture
def worker_of_the_page(tmp_path: Path) -> Path:
    """The page's worker as a program."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    script = tmp_path / "worker.py"
    script.write_text(code)
    return script


@pytest.mark.slow
def test_the_worker_of_the_page_works_and_survives_a_restart_of_the_orchestrator(
    worker_of_the_page: Path, start: Callable[..., Any], python: str, tmp_path: Path
) -> None:
    serve = (python, "-m", "services.orchestrator", "--state", tmp_path / "state", "--heartbeat-s", "0.3")
    orchestrator = start(*serve, "--port", "0")
    address = orchestrator.address()
    start(python, worker_of_the_page, address, "page-1")
    with af.connect(address) as farm:
        assert [f.result(timeout=30) for f in farm.map("demo.square", range(100))] == [n * n for n in range(100)]
        with pytest.raises(af.TaskFailed, match="TypeError"):
            farm.submit("demo.square", "text").result(timeout=30)
    orchestrator.send(signal.SIGKILL)
    orchestrator.wait()
    start(*serve, "--port", address.rpartition(":")[2]).address()
    with af.connect(address) as farm:
        assert farm.submit("demo.square", 12).result(timeout=30) == 144


def test_every_frame_and_verdict_is_named() -> None:
    frames = [
        field.message_type.name
        for message in (
            work_queue_pb2.PullTasksRequest,
            work_queue_pb2.PullTasksResponse,
            report_queue_pb2.PushReportsRequest,
        )
        for field in message.DESCRIPTOR.fields
    ]
    verdicts = [name.removeprefix("VERDICT_CODE_") for name in report_queue_pb2.VerdictCode.keys()[1:]]
    endings = [name.removeprefix("ENDING_") for name in report_queue_pb2.Ending.keys()[1:]]
    classes = [name.removeprefix("FAILURE_CLASS_") for name in common_pb2.FailureClass.keys()[1:5]]
    assert [word for word in (*frames, *verdicts, *endings, *classes) if not re.search(rf"\b{word}\b", PAGE)] == []


def test_every_reason_of_an_error_is_named() -> None:
    def tree(root: type[errors.AntFarmError]) -> set[str]:
        return {root.reason}.union(*(tree(cls) for cls in root.__subclasses__() if cls.__module__ == errors.__name__))

    assert [reason for reason in sorted(tree(errors.AntFarmError)) if f"`{reason}`" not in PAGE] == []


def test_every_form_of_a_value_is_named_and_none_that_is_not() -> None:
    homes = ("payload", "form", "pipeline")
    source = "".join((ROOT / "antfarm" / f"{home}.py").read_text(encoding="utf-8") for home in homes)
    forms = set(re.findall(r'"(\$[a-z]+)"', source))
    assert set(re.findall(r'"(\$[a-z]+)"', PAGE)) == forms


def test_every_link_of_the_page_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
