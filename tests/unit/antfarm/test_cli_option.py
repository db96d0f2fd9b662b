"""The flags of submit and run say of a task what its code would say, and complain under their own names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from antfarm import apps, model
from antfarm.cli.__main__ import _parser
from antfarm.cli.option import declared_options, job_options, job_spec
from antfarm.errors import InvalidArgument
from antfarm.model import SECOND_NS
from antfarm.task import Options, Retry, Timeouts, _registry, template


def parse(*words: str) -> argparse.Namespace:
    return _parser().parse_args(["submit", "app.gpu", *words])


def asked(*words: str, declared: Options | None = None) -> model.TaskTemplate:
    return template("app.gpu", job_options(parse(*words), "app.gpu", declared))


@pytest.fixture
def app(tmp_path: Path) -> Iterator[str]:
    """A file with a task that declares options."""
    before, loaded, path = dict(_registry), dict(apps._loaded), list(sys.path)
    file = tmp_path / "app_declared.py"
    file.write_text(
        "import antfarm as af\n"
        "@af.task(resources={'gpu': 1}, labels={'zone': 'north'}, retries=af.Retry(max_attempts=5, backoff=2),"
        " timeouts=af.Timeouts(run=60, queue=5))\n"
        "def gpu(): pass\n"
    )
    yield str(file)
    _registry.clear()
    _registry.update(before)
    apps._loaded.clear()
    apps._loaded.update(loaded)
    sys.path[:] = path
    sys.modules.pop("app_declared", None)


def test_every_option_of_a_task_has_a_flag() -> None:
    words = (
        "--resource gpu=1 --resource cpu=0.5 --label zone=north --retries 2 --retry-pause 2m --timeout 90s --progress-timeout 10 "
        "--queue-timeout 1h --total-timeout 2h --jobs 4 --at-most-once --fence-late-results --idempotent"
    )
    assert asked(*words.split()) == model.TaskTemplate(
        type="app.gpu",
        retry=model.RetryPolicy(
            max_attempts=3, backoff_initial_ns=120 * SECOND_NS, backoff_max_ns=120 * SECOND_NS
        ),  # a later pause is never shorter
        timeouts=model.Timeouts(
            run_ns=90 * SECOND_NS, progress_ns=10 * SECOND_NS, queue_ns=3600 * SECOND_NS, total_ns=7200 * SECOND_NS
        ),
        resources={"gpu": 1.0, "cpu": 0.5},
        labels={"zone": "north"},
        limit=model.ConcurrencyLimit(name="app.gpu", max_active=4),
        at_most_once=True,
        fence_late_results=True,
        idempotent=True,
    )
    assert asked() == model.TaskTemplate(type="app.gpu")
    assert asked("--run-timeout", "90s") == asked("--timeout", "90s")


def test_options_are_read_from_the_code_and_flags_change_them(app: str) -> None:
    declared = declared_options("app_declared.gpu", [app])
    made = asked("--retries", "0", "--resource", "cpu=2", "--timeout", "5", declared=declared)
    assert (made.resources, made.labels) == ({"gpu": 1, "cpu": 2.0}, {"zone": "north"})
    assert made.retry.max_attempts == 1
    assert made.timeouts == model.Timeouts(run_ns=5 * SECOND_NS, queue_ns=5 * SECOND_NS)
    assert declared.retries == Retry(max_attempts=5, backoff=2)
    assert declared.timeouts == Timeouts(run=60, queue=5)


def test_a_type_that_the_code_does_not_have_is_refused(app: str) -> None:
    with pytest.raises(InvalidArgument, match=r"has no task app_declared\.cpu; it has .*app_declared\.gpu"):
        declared_options("app_declared.cpu", [app])
    with pytest.raises(InvalidArgument, match="no such file"):
        declared_options("app.gpu", ["none.py"])


@pytest.mark.parametrize(
    "words",
    [
        "--resource gpu",
        "--resource =1",
        "--resource gpu=two",
        "--resource gpu=-1",
        "--resource gpu=nan",
        "--label zone",
        "--label =north",
        "--retries -1",
        "--retries 99999999999",
        "--retry-pause soon --retries 1",
        "--retry-pause 1s",
        "--timeout soon",
        "--timeout 0",
        "--total-timeout -5",
        "--jobs 0",
        "--jobs -3",
        "--max-failures -1",
        "--max-failures 99999999999999999999",
        "--priority 11",
        "--job-id last",
    ],
)
def test_a_complaint_names_the_flag(words: str) -> None:
    options = parse(*words.split())
    with pytest.raises(InvalidArgument, match=f"^{words.split()[0]}[ :]"):
        job_spec(options, template("app.gpu", job_options(options, "app.gpu")), "")
