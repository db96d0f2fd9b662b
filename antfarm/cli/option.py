"""The flags of every subcommand that makes a job, and what they ask of the farm.

A complaint names the flag, not the option of the library that it stands for.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace

from antfarm.cli.session import flag_seconds
from antfarm.client.selection import LAST
from antfarm.duration import seconds
from antfarm.errors import InvalidArgument
from antfarm.model import PRIORITY_MAX, JobSpec, TaskTemplate
from antfarm.task import Limit, Options, Retry, Timeouts

_TIMEOUTS = {"run": "timeout", "progress": "progress_timeout", "queue": "queue_timeout", "total": "total_timeout"}
_RETRIES_MAX = 999_999


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every subcommand that makes a job."""
    group = parser.add_argument_group("job")
    group.add_argument("--name", default="", help="for people, and to find the job again")
    group.add_argument("--priority", type=int, default=0, metavar="N", help="-10 to 10; each step quadruples the share")
    group.add_argument("--max-failures", type=int, metavar="N", help="cancel the job when more tasks failed")
    group.add_argument(
        "--job-id", default="", metavar="ID", help="chosen by you: submitting again with it does nothing twice"
    )
    group = parser.add_argument_group("each of its tasks")
    group.add_argument(
        "--resource",
        action="append",
        default=[],
        metavar="NAME=AMOUNT",
        help="takes so much of a worker, e.g. gpu=1; default: one slot",
    )
    group.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="runs only on workers with this label"
    )
    group.add_argument("--retries", type=int, metavar="N", help="is tried so many times more after it failed")
    group.add_argument("--retry-pause", metavar="TIME", help="first pause before that; later ones double; default: 1s")
    group.add_argument(
        "--timeout", "--run-timeout", metavar="TIME", help="of one attempt, e.g. 90s, 10m; it is stopped then"
    )
    group.add_argument("--progress-timeout", metavar="TIME", help="longest silence of one attempt; it is stopped then")
    group.add_argument("--queue-timeout", metavar="TIME", help="longest wait for a worker; it expires then")
    group.add_argument("--total-timeout", metavar="TIME", help="from submission to the end; it expires then")
    group.add_argument("--jobs", "-j", type=int, metavar="N", help="at most so many at the same time")
    for name, about in (
        ("at-most-once", "is rather given up than started twice"),
        ("fence-late-results", "refuses the success of an attempt that was declared lost"),
        ("idempotent", "may run twice at the same time: a slow one may get a second attempt"),
    ):
        group.add_argument(f"--{name}", action="store_true", help=about)


def job_options(options: argparse.Namespace, limit_name: str, declared: Options | None = None) -> Options:
    """What the flags ask of the farm for each task, over what its code `declared`. A flag that is not given changes nothing."""
    made = declared or Options()
    if options.resource:
        made = replace(made, resources={**(made.resources or {}), **dict(map(_resource, options.resource))})
    if options.label:
        made = replace(made, labels={**(made.labels or {}), **dict(map(_label, options.label))})
    made = replace(made, retries=_retries(options, made.retries), timeouts=_timeouts(options, made.timeouts))
    if options.jobs is not None:
        if options.jobs < 1:
            raise InvalidArgument(f"--jobs {options.jobs}: give 1 or more; without --jobs there is no limit")
        made = replace(made, limit=Limit(limit_name, options.jobs))
    return replace(
        made,
        at_most_once=options.at_most_once or made.at_most_once,
        fence_late_results=options.fence_late_results or made.fence_late_results,
        idempotent=options.idempotent or made.idempotent,
    )


def job_spec(options: argparse.Namespace, template: TaskTemplate, name: str) -> JobSpec:
    """The job that the flags ask for."""
    if not -PRIORITY_MAX <= options.priority <= PRIORITY_MAX:
        raise InvalidArgument(f"--priority {options.priority}: give {-PRIORITY_MAX} to {PRIORITY_MAX}")
    if options.max_failures is not None and not 0 <= options.max_failures < 1 << 63:
        raise InvalidArgument(
            f"--max-failures {options.max_failures}: give 0 or more; without it the job goes on whatever fails"
        )
    if options.job_id == LAST:
        raise InvalidArgument(f"--job-id {LAST}: this word means the last job wherever a job is named; choose another")
    return JobSpec(template=template, name=name, priority=options.priority, max_failures=options.max_failures)


def _retries(options: argparse.Namespace, declared: Retry | None) -> Retry | None:
    made = declared
    if options.retries is not None:
        if not 0 <= options.retries <= _RETRIES_MAX:
            raise InvalidArgument(f"--retries {options.retries}: give 0 to {_RETRIES_MAX:,}")
        made = replace(made or Retry(), max_attempts=options.retries + 1)
    if options.retry_pause is None:
        return made
    if made is None:
        raise InvalidArgument("--retry-pause goes with --retries: without retries there is no pause")
    pause_s = flag_seconds("--retry-pause", options.retry_pause)
    return replace(made, backoff=pause_s, backoff_max=max(pause_s, seconds(made.backoff_max)))


def _timeouts(options: argparse.Namespace, declared: Timeouts | None) -> Timeouts | None:
    given: dict[str, float] = {}
    for name, dest in _TIMEOUTS.items():
        text = getattr(options, dest)
        if text is not None:
            flag = "--" + dest.replace("_", "-")
            given[name] = flag_seconds(flag, text)
            if given[name] == 0:
                raise InvalidArgument(f"{flag} {text}: give a time above 0; without it there is no limit")
    return replace(declared or Timeouts(), **given) if given else declared


def _resource(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        amount = float(value)
    except ValueError:
        amount = math.nan
    if not name or not equals or not 0 <= amount < math.inf:
        raise InvalidArgument(f"--resource {text}: write NAME=AMOUNT, e.g. gpu=1; the amount is a number of at least 0")
    return name, amount


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidArgument(f"--label {text}: write KEY=VALUE, e.g. zone=north")
    return name, value


def declared_options(task_type: str, apps: Sequence[str]) -> Options:
    """The options that the code of a task type declares, read from modules or files. InvalidArgument when it is in none of them."""
    from antfarm.task import load_apps

    known = load_apps(apps, entry_points=False)
    if task_type not in known:
        names = ", ".join(sorted(known)[:10])
        raise InvalidArgument(f"--app {' '.join(apps)} has no task {task_type}{f'; it has {names}' if names else ''}")
    return known[task_type].options_set
