"""Which outputs of attempts nobody will ever ask for. Pure: keys, ages and what the record says come in, a decision comes out.

An output lies under `tasks/<job id>/<index>/<epoch>-<attempt>/<name>`. It is an orphan when its task has ended and the recorded outcome does not
name it, or when no record knows its task. An orphan cannot come back to life: an ended task stays ended, and no token is issued twice. So only
the age of an orphan of an unknown task is a matter of trust in a clock; that of an ended task's merely spares attempts that still run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Task = tuple[str, int]
"""(job id, index)."""

PREFIX = "tasks/"
"""All that is ever swept starts with it. What clients put into Storage themselves is theirs."""
_INDEX = re.compile(r"(0|[1-9][0-9]{0,17})\Z")
"""What may be a task's index. A digit less than 64 bits hold, so that the sums of relays fit the question too, however long the key."""
_TOKEN = re.compile(r"[0-9]+-[0-9]+\Z")
_FROM_ABOVE = "up/"
"""Jobs made for a task from up-stream are called up/<its job>/<its index>/<stage> (docs/protocol.md)."""
_RELAY = "relay-"
"""Start of the stage's name where the job's task i is the task index + i from up-stream, as it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the records say of a task. Nothing of it set: none knows the task."""

    live: bool = False
    """One knows the task and no outcome of it."""
    ended: bool = False
    """One has its outcome."""
    keys: frozenset[str] = frozenset()
    """The manifest of that outcome."""
    results: tuple[bytes, ...] = ()
    """Its result, which may name further blobs."""

    def __or__(self, other: Standing) -> Standing:
        """What two records say together."""
        return Standing(
            live=self.live or other.live,
            ended=self.ended or other.ended,
            keys=self.keys | other.keys,
            results=self.results + other.results,
        )

    @property
    def known(self) -> bool:
        """True when a record knows the task."""
        return self.live or self.ended

    def names(self, key: str) -> bool:
        """True when the recorded outcome needs the blob."""
        return key in self.keys or any(key.encode() in result for result in self.results)


UNKNOWN = Standing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """How old orphans get, in seconds."""

    ended_s: float
    """Those of ended tasks."""
    unknown_s: float
    """Those of tasks that no record knows."""

    @property
    def least_s(self) -> float:
        """Younger blobs are not worth a question."""
        return min(self.ended_s, self.unknown_s)


def owners(key: str) -> tuple[Task, ...]:
    """The tasks whose output a key may be; none when it is no attempt's output. More than one where a name looks like a token."""
    parts = key.removeprefix(PREFIX).split("/")
    if not key.startswith(PREFIX):
        return ()
    return tuple(
        ("/".join(parts[:at]), int(parts[at]))
        for at in range(1, len(parts) - 2)
        if _INDEX.match(parts[at]) and _TOKEN.match(parts[at + 1])
    )


def ancestors(task: Task) -> tuple[Task, ...]:
    """The tasks from up-stream that a task was made for, nearest first."""
    found: list[Task] = []
    job_id, local = task
    while job_id.startswith(_FROM_ABOVE):
        above, _, stage = job_id.removeprefix(_FROM_ABOVE).rpartition("/")
        job_id, _, index = above.rpartition("/")
        if not job_id or not _INDEX.match(index):
            break
        local = int(index) + (local if stage.startswith(_RELAY) else 0)
        found.append((job_id, local))
    return tuple(found)


def concerned(key: str) -> frozenset[Task]:
    """All tasks whose standing decides about a blob."""
    own = owners(key)
    return frozenset(own).union(*(ancestors(task) for task in own))


def is_from_above(key: str) -> bool:
    """True when the blob may have been made for a task from up-stream, whose record may name it."""
    return any(map(ancestors, owners(key)))


def shows_top(standings: Mapping[Task, Standing]) -> bool:
    """True when some record knows a task that others were made for and that was made for none itself: the one at the top is among them."""
    tops = {above[-1] for task in standings if (above := ancestors(task))}
    return any(standings[top].known for top in tops if top in standings)


def is_orphan(key: str, age_s: float, standings: Mapping[Task, Standing], ages: Ages) -> bool:
    """True when the blob may go.

    Args:
        standings: of all `concerned` tasks, from all orchestrators whose workers write here and all above them. A missing one is an error, not an
            unknown task.
    """
    own = owners(key)
    if not own or any(standings[task].names(key) for task in concerned(key)):
        return False
    for task in own:
        standing = standings[task]
        if standing.live:
            return False
        if not standing.known and any(standings[above].known for above in ancestors(task)):
            return False  # the result of the task above may name it, and only the orchestrator below could tell
        if age_s < (ages.ended_s if standing.ended else ages.unknown_s):
            return False
    return True
