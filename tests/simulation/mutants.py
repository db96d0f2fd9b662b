"""Deliberate bugs: each must be caught by the simulation, or its checkers are blind.

`python -m tests.simulation.mutants` runs them all, each in processes of its own, and prints a table; `NAME ...` runs those. A mutant is a change
of one text in one module, made while the module is imported; the files stay as they are.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import CodeType, ModuleType

CORE = "services.orchestrator.core"
LINK = "antfarm.link.session"
SEEDS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug: `old` becomes `new` in `module`."""

    name: str
    module: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "any worker may report a live attempt",
        f"{CORE}.reports",
        "return Judgement.LIVE if live.worker is worker else Judgement.FENCED",
        "return Judgement.LIVE",
    ),
    Mutant(
        "a verdict leaves before its commit", f"{CORE}.reports", "after=turn.state.seq, code=code", "after=0, code=code"
    ),
    Mutant(
        "a submission is acknowledged before its commit",
        f"{CORE}.jobs",
        "make(turn, event.job_id, event.spec, event.payloads, close=event.close)\n    turn.effect(Reply(request=event.request, after=state.seq))",
        "make(turn, event.job_id, event.spec, event.payloads, close=event.close)\n    turn.effect(Reply(request=event.request, after=0))",
    ),
    Mutant(
        "a token is used again",
        f"{CORE}.placement",
        "attempt_no, app_failures = note.attempt + 1, note.app_failures",
        "attempt_no, app_failures = max(note.attempt, 1), note.app_failures",
    ),
    Mutant(
        "a restart keeps the epoch",
        f"{CORE}.leases",
        "epoch=max(state.epoch + 1, turn",
        "epoch=max(state.epoch, turn",
    ),
    Mutant(
        "assignments leave before their epoch is durable",
        f"{CORE}.placement",
        "max(worker.frames_after, frames.after, turn.state.epoch_seq)",
        "max(worker.frames_after, frames.after)",
    ),
    Mutant(
        "a worker forgets its reports when it attaches",
        LINK,
        "self._beats.clear()\n",
        "self._beats.clear()\n        self._unacked.clear()\n",
    ),
    Mutant(
        "a worker sends only its last report again",
        LINK,
        "for number, entry in self._unacked.items()]",
        "for number, entry in self._unacked.items()][-1:]",
    ),
    Mutant("a worker does not say what it holds unreported", LINK, "self.held.setdefault(token, 0)", "pass"),
    Mutant("no pause guard", f"{CORE}.machine", "leases.extend(turn, gap_ns)", "pass"),
    Mutant(
        "a benign end is counted",
        f"{CORE}.reports",
        "            give_back(turn, attempt, Past.RELEASED, never_started=outcome.never_started)\n        case Ending.FAILED",
        '            fail(turn, attempt, Failure(failure_class=FailureClass.INFRA, kind="x", message=""), run_us=0)\n        case Ending.FAILED',
    ),
    Mutant(
        "no late success",
        f"{CORE}.reports",
        "            case Past.LOST:\n                return late",
        "            case Past.LOST:\n                return Judgement.SUPERSEDED",
    ),
    Mutant(
        "an at-most-once token is not awaited",
        f"{CORE}.placement",
        "frames.after = turn.record(\n                records.AttemptIssued(",
        "turn.record(\n                records.AttemptIssued(",
    ),
    Mutant(
        "an at-most-once task is queued after a restart",
        f"{CORE}.leases",
        "if job.template.at_most_once and note.past and",
        "if False and",
    ),
    Mutant(
        "a started at-most-once task is given out again",
        f"{CORE}.reports",
        "        if not never_started:\n            failure",
        "        if never_started is None:\n            failure",
    ),
    Mutant(
        "a cancel is acknowledged before its commit",
        f"{CORE}.jobs",
        'event.cause or "cancelled by a user")\n    turn.effect(Reply(request=event.request, after=turn.state.seq))\n\n\ndef cancel_job',
        'event.cause or "cancelled by a user")\n    turn.effect(Reply(request=event.request, after=0))\n\n\ndef cancel_job',
    ),
    Mutant(
        "what never arrived is not missed",
        f"{CORE}.workers",
        "and attempt.token not in held\n",
        "and attempt.token not in held and False\n",
    ),
    Mutant(
        "what is on its way is missed",
        f"{CORE}.workers",
        "attempt.frame <= frames_received) and",
        "attempt.frame <= frames_received or True) and",
    ),
    Mutant(
        "recovered tasks go out at once",
        f"{CORE}.leases",
        "state.recovering_until_ns is None or (state.awaited and turn.now < state.recovering_until_ns)",
        "state.recovering_until_ns is None",
    ),
    Mutant(
        "the end of an older attempt gives out what is still recovered",
        f"{CORE}.isolation",
        "if note is not None and recovering and not turn.state.knows_epoch(note.epoch):",
        "if False:",
    ),
    Mutant(
        "a newer parent token is ignored",
        f"{CORE}.parents",
        "if known is not None and (known.epoch, known.attempt) >= token:",
        "if known is not None:",
    ),
    Mutant(
        "children leave before they are durable",
        f"{CORE}.placement",
        "return job.added_seq if job.job_id.startswith(PARENT_PREFIX) else 0",
        "return 0",
    ),
    Mutant(
        "a parent is reported before its end is durable",
        f"{CORE}.parents",
        "ends=ends, after=max(seq, parent.seq), took_ns",
        "ends=ends, after=0, took_ns",
    ),
    Mutant(
        "one app retry too many",
        f"{CORE}.reports",
        "app >= template.retry.max_attempts",
        "app > template.retry.max_attempts",
    ),
    Mutant(
        "poison after two crashes",
        f"{CORE}.reports",
        "crashes >= turn.config.crashes_max",
        "crashes + 1 >= turn.config.crashes_max",
    ),
    Mutant(
        "the infrastructure budget is one short",
        f"{CORE}.reports",
        "infra > turn.config.infra_failures_max",
        "infra >= turn.config.infra_failures_max",
    ),
    Mutant(
        "a loss is remembered as a failure",
        f"{CORE}.state",
        "how = Past.LOST if record.lost else Past.FAILED",
        "how = Past.FAILED",
    ),
    Mutant(
        "a failed attempt may report again",
        f"{CORE}.reports",
        "case Past.FAILED | Past.RELEASED:\n                return Judgement.DUPLICATE",
        "case Past.FAILED | Past.RELEASED:\n                return Judgement.ADOPT",
    ),
    Mutant(
        "a lost worker keeps its tasks",
        f"{CORE}.workers",
        "        lose(turn, attempt, cause)\n    worker.stopping",
        "        pass\n    worker.stopping",
    ),
    Mutant(
        "a lease is four times as long",
        f"{CORE}.workers",
        "if silent_ns > worker.lease_ns:",
        "if silent_ns > 4 * worker.lease_ns:",
    ),
    Mutant(
        "the credit is not looked at",
        f"{CORE}.placement",
        "limit = min(worker.slots, worker.window) if by_slots else worker.window",
        "limit = worker.slots + 8",
    ),
    Mutant(
        "a failed dependency will do",
        f"{CORE}.state",
        "return 0 <= index < len(other.states) and other.states[index] == _SUCCEEDED",
        "return 0 <= index < len(other.states) and other.states[index] >= _SUCCEEDED",
    ),
    Mutant(
        "a result is used before it is durable",
        f"{CORE}.placement",
        "        return turn.state.seq\n",
        "        return 0\n",
    ),
    Mutant("a purged job's tokens come again", f"{CORE}.jobs", "if job_id in turn.state.purged:", "if False:"),
    Mutant(
        "a job is purged while it runs",
        f"{CORE}.jobs",
        "    if not job.ended:\n        raise errors.JobNotEnded",
        "    if False:\n        raise errors.JobNotEnded",
    ),
    Mutant(
        "an issued at-most-once token is late after a restart",
        f"{CORE}.reports",
        "            case Past.ISSUED:\n                return Judgement.ADOPT",
        "            case Past.ISSUED:\n                return late",
    ),
    Mutant("a limit leaks at each loss", f"{CORE}.state", "_use(worker, job.lane, -1)", "_use(worker, job.lane, 0)"),
    Mutant(
        "a success is recorded with another result",
        f"{CORE}.reports",
        "                    result=outcome.result,\n                    outputs=outcome.outputs,\n                    run_us=outcome.run_us,\n                )\n            )\n            accepted",
        "                    result=outcome.result[:1],\n                    outputs=outcome.outputs,\n                    run_us=outcome.run_us,\n                )\n            )\n            accepted",
    ),
    Mutant(
        "a back-off never ends",
        f"{CORE}.leases",
        "note.wait_until_ns == due_ns and job.states[index] == TaskState.WAITING",
        "note.wait_until_ns == due_ns and job.states[index] == TaskState.ACTIVE",
    ),
    Mutant(
        "poison though others were there",
        f"{CORE}.isolation",
        "return alone_there and not worker.stopping and not worker.orchestrator",
        "return True",
    ),
    Mutant(
        "a suspect's worker is not emptied",
        f"{CORE}.isolation",
        "        if worker.is_empty:\n            alone.running = True",
        "        if worker.able:\n            alone.running = True",
    ),
    Mutant(
        "quarantine takes any number of workers",
        f"{CORE}.health",
        "return away + 1 <= len(workers) // 3 and all(",
        "return away + 1 <= len(workers) and all(",
    ),
    Mutant(
        "what a quarantine took back counts",
        f"{CORE}.reports",
        "give_back(turn, attempt, Past.REVOKED, never_started=True)",
        "give_back(turn, attempt, Past.LOST, never_started=True)",
    ),
    Mutant(
        "a canary never comes",
        f"{CORE}.health",
        "return probation.canary is None and turn.now >= probation.due_ns",
        "return False",
    ),
    Mutant(
        "a returning worker's finished attempt is stopped for a newer one",
        f"{CORE}.workers",
        "finished=token in unacked",
        "finished=False",
    ),
    Mutant(
        "what a quarantine takes back is given out before its first frame has left",
        f"{CORE}.reports",
        "attempt.job.note(attempt.index).after = worker.frames_after",
        "attempt.job.note(attempt.index).after = 0",
    ),
    Mutant(
        "a retry does not wait for what a restored backup has not seen end",
        f"{CORE}.isolation",
        "if jobs.must_wait(turn, job, index):",
        "if False:",
    ),
    Mutant(
        "a newer token from above is told the failure of the older one",
        f"{CORE}.parents",
        "    _clear_failed(turn, parent)\n    advance",
        "    advance",
    ),
    Mutant(
        "a newer token from above is told the failure of the older one's relayed task",
        f"{CORE}.parents",
        "if not relay.has_failed(turn, known):",
        "if True:",
    ),
    Mutant(
        "a relayed task is reported before its end is durable",
        f"{CORE}.relay",
        "turn.effect(ReportParents(seq=seq, ends=ends, after=turn.state.seq))",
        "turn.effect(ReportParents(seq=seq, ends=ends, after=0))",
    ),
    Mutant(
        "a newer token from above makes a relayed task once more",
        f"{CORE}.parents",
        "if not relay.has_failed(turn, known):",
        "if False:",
    ),
    Mutant(
        "a task with the name of one that is done gets its result",
        f"{CORE}.parents",
        "    if (event.job_id, task.index) not in turn.state.parents:\n",
        "    if False:\n",
    ),
    Mutant(
        "what was taken back from above goes on here",
        f"{CORE}.relay",
        "        jobs.end_tasks(turn, turn.state.jobs[number], indices, TaskState.CANCELLED, records.cancelled(cause))",
        "        pass",
    ),
    Mutant(
        "an end of before a restart is not told up-stream",
        f"{CORE}.parents",
        "    relay.resume(turn, [parent for parent in parents if parent.job])\n    for",
        "    for",
    ),
    Mutant(
        "what failed below is tried again above",
        f"{CORE}.reports",
        "judged = attempt.worker.orchestrator and not lost",
        "judged = False",
    ),
    Mutant(
        "what a drained cluster gives back has used no retries there",
        f"{CORE}.parents",
        "after=after, app_failures=used",
        "after=after, app_failures={}",
    ),
    Mutant(
        "what a restored backup has undone counts",
        f"{CORE}.reports",
        "if turn.state.has_lost_epoch(epoch):",
        "if False:",
    ),
    Mutant(
        "tokens of earlier epochs of this life are not known",
        f"{CORE}.reports",
        "if turn.state.knows_epoch(epoch) or not",
        "if not",
    ),
    Mutant("a late hello takes over", f"{CORE}.workers", "if 0 < event.dial <= worker.dial:", "if False:"),
    Mutant(
        "a hello without a number says what never arrived",
        f"{CORE}.workers",
        "spare=another or event.dial == 0",
        "spare=another",
    ),
    Mutant(
        "a second process is let in under a worker's id",
        f"{CORE}.workers",
        "if worker.session is not None and not worker.suspect and not worker.lost:",
        "if False:",
    ),
    Mutant(
        "an incarnation whose place was taken comes back",
        f"{CORE}.workers",
        "if worker is not None and event.incarnation in worker.former:",
        "if False:",
    ),
    Mutant("another protocol is welcome", f"{CORE}.workers", "if event.protocol_major != PROTOCOL_MAJOR:", "if False:"),
    Mutant(
        "all orchestrators begin with the same epoch",
        f"{CORE}.leases",
        "epoch=max(state.epoch + 1, turn.config.first_epoch)",
        "epoch=state.epoch + 1",
    ),
    Mutant(
        "the sweeper takes what a task that goes on has written",
        "services.storage.core.sweep",
        "if standing.live:\n            return False",
        "if False:\n            return False",
    ),
    Mutant(
        "the sweeper takes what a record names",
        "services.storage.core.sweep",
        "if not own or any(standings[task].names(key) for task in concerned(key)):",
        "if not own:",
    ),
    Mutant(
        "effects leave before the commit (driver)",
        "tests.simulation.orchestrator",
        "            if effect.after <= self.durable_seq:\n                self._release(effect)\n            else:\n                self._held.append(effect)\n\n    def _begin_commit",
        "            self._release(effect)\n\n    def _begin_commit",
    ),
)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the changed text, never a cached one."""

    def __init__(self, name: str, path: str, mutant: Mutant) -> None:
        super().__init__(name, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_source(fullname)
        assert source is not None
        found = source.count(self._mutant.old)
        assert found == 1, f"{self._mutant.name}: its text is {found} times in {fullname}, not once: mend the mutant"
        return compile(source.replace(self._mutant.old, self._mutant.new), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin, self._mutant)
        )


def hunt(mutant: Mutant, seeds: int) -> int:
    """Run seeds with the mutant until one fails; prints how. Exit code 0 when it was caught."""
    sys.meta_path.insert(0, _Finder(mutant))
    from tests.simulation.world import World

    for seed in range(1, seeds + 1):
        try:
            World(seed).run()
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            if not isinstance(error, AssertionError):
                text = f"{type(error).__name__} {text}"
            print(f"{seed}\t{text[:100]}")
            return 0
    print(f"-\tnot within {seeds} seeds")
    return 1


def _in_own_process(number: int, seeds: int) -> tuple[Mutant, int, str]:
    command = [sys.executable, "-m", "tests.simulation.mutants", "--hunt", str(number), "--seeds", str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return MUTANTS[number], done.returncode, done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def main() -> int:
    """Run mutants. Exit code 1 when one is not caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="start of the names of those to run (default all)")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help=f"seeds to try for each (default {SEEDS_MAX})")
    parser.add_argument("--hunt", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hunt is not None:
        return hunt(MUTANTS[arguments.hunt], arguments.seeds)
    names = tuple(arguments.names) or ("",)
    chosen = [number for number, mutant in enumerate(MUTANTS) if mutant.name.startswith(names)]
    caught = 0
    print("| mutant | caught at seed | by |\n|---|---|---|")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for mutant, code, text in pool.map(lambda number: _in_own_process(number, arguments.seeds), chosen):
            seed, _, how = text.partition("\t")
            print(f"| {mutant.name} | {seed} | {how.replace('|', '/')} |", flush=True)
            caught += code == 0
    print(f"\n{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
