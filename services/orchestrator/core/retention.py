"""Retention: how long ended jobs are kept, so that a farm that runs for years does not grow without end.

Ages are measured by the clock that never goes back; only the part before a restart comes from the wall clock. A clock that jumps while the farm runs
purges nothing. What still matters to somebody (a job that waits for it, a task from up-stream) stays, however old it is.
"""

from __future__ import annotations

from antfarm.model import SECOND_NS
from services.orchestrator.core import jobs, records
from services.orchestrator.core.turn import Turn

PURGES_MAX = 100
"""Jobs purged in one turn; more wait for the next."""
PURGED_IDS_MAX = 10_000
"""Ids of purged jobs that are remembered; more begin a new epoch, which makes them superfluous."""
LOOK_NS_MAX = 60 * SECOND_NS
"""Ended jobs are looked at this often at least."""


def purge_due(turn: Turn) -> int:
    """Purge ended jobs that have been kept long enough, oldest end first. Returns when to look again, on the turn's clock."""
    state, config = turn.state, turn.config
    if len(state.purged) >= PURGED_IDS_MAX:
        turn.record(records.EpochStarted(epoch=state.epoch + 1, wall_ns=turn.wall_ns))
    purged = 0
    for number in list(state.ended):
        if purged == PURGES_MAX:
            return turn.now
        job = state.jobs[number]
        crowded = state.disk_low or state.ended_tasks > config.ended_tasks_max
        keep_ns = min(config.keep_ended_ns, config.keep_crowded_ns) if crowded else config.keep_ended_ns
        if turn.now - job.ended_ns >= keep_ns and jobs.needed_by(turn, job) is None:
            turn.record(records.JobPurged(job=number))
            purged += 1
    return turn.now + min(LOOK_NS_MAX, config.keep_ended_ns // 10)
