"""The tie to the orchestrator above, without one: what the core wants of it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from orchestrator_harness import Harness, each, retrying, template

from antfarm import net, wire
from antfarm import payload as payloads
from antfarm.errors import InvalidArgument, Unavailable
from antfarm.link import Link, OutcomeParts
from antfarm.link.session import Token
from antfarm.model import SECOND_NS, BlobRef, Ending, FailureClass, TaskTemplate, VerdictCode
from antfarm.v1 import common_pb2, work_queue_pb2
from services.orchestrator import inputs
from services.orchestrator import upstream as upstream_module
from services.orchestrator.core import effects, events, records
from services.orchestrator.core.machine import Core
from services.orchestrator.core.records import Record
from services.orchestrator.core.turn import CoreConfig
from services.orchestrator.inputs import Inputs
from services.orchestrator.journal.memory import MemoryJournal
from services.orchestrator.runtime.above import Above
from services.orchestrator.runtime.driver import Driver
from services.orchestrator.runtime.sessions import Sessions
from services.orchestrator.runtime.timers import SystemClock
from services.orchestrator.upstream import Upstream

Said = tuple[Token, Ending, bool]
"""Token, ending, whether it never started."""

CHILD = common_pb2.TaskTemplate(type="child")
EXPANSION = json.dumps(
    {
        "$expansion": {
            "template": base64.b64encode(CHILD.SerializeToString()).decode(),
            "payloads": [base64.b64encode(b"[1]").decode()],
        }
    }
).encode()
EXPANDED = events.ParentExpanded(
    parent=("top", 4), plan=1, template=wire.template_from_wire(CHILD), payloads=[b"[1]"], failure=None
)
IN_STORAGE = payloads.blob_payload(BlobRef(key="up/top/4/plan", size_bytes=100_000, sha256=b"x" * 32))


def make(
    core: Core,
    task_types: tuple[str, ...] = ("t",),
    slots: int = 1,
    journal: MemoryJournal | None = None,
    directory: Path = Path("/nowhere"),
) -> tuple[Driver, Upstream]:
    driver = Driver(core, journal or MemoryJournal(), SystemClock(), lambda effect: None)
    sessions = Sessions(core.state, owner=b"me", orchestrator_id="me", storage_address="")
    upstream = Upstream(
        driver,
        sessions,
        address="127.0.0.1:1",
        task_types=task_types,
        slots=slots,
        orchestrator_id="me",
        storage_address="",
        above=Above(directory),
        tls=None,
    )
    return driver, upstream


def tell(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, OutcomeParts]]:
    """What is reported from now on, instead of sent."""
    told: list[tuple[str, int, OutcomeParts]] = []
    monkeypatch.setattr(upstream._link, "report", lambda *report: told.append(report))
    return told


async def test_an_end_whose_record_is_purged_is_told_to_nobody_and_is_no_defect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The parent came again under a newer token while its old failure was being read, and is done anew."""
    driver, upstream = make(Core(CoreConfig(), None))  # type: ignore[arg-type]
    before = asyncio.all_tasks()
    with caplog.at_level(logging.INFO):
        upstream.deliver(effects.ReportParents(seq=7, ends=[effects.ParentEnd(("job", 0, 1, 1), 0)], after=0))
        await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
        await driver.close()
    assert caplog.messages == []


async def test_tasks_whose_inputs_cannot_be_read_because_the_connection_ended_go_back_unstarted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of the group, also those whose turn comes after the one that met it: nobody else would ever speak of them."""
    driver, upstream = make(Core(CoreConfig(), None))  # type: ignore[arg-type]
    told = tell(upstream, monkeypatch)
    channel = net.open_channel("127.0.0.1:1", None)
    await channel.close()
    monkeypatch.setattr(upstream._link, "_channel", channel)
    group = work_queue_pb2.TaskGroup(job_id="second", epoch=1, template=common_pb2.TaskTemplate(type="t"))
    group.inputs.add(job_id="first", kind=common_pb2.DEPENDENCY_KIND_EACH)
    for index in range(3):
        group.assignments.add(index=index, attempt=1, payload=b'[{"$input":0}]')
        upstream._link.hold(("second", index, 1, 1))
    upstream.on_tasks([group])
    await asyncio.gather(*upstream._tasks)
    assert told == [
        ("second", 1, OutcomeParts(index=index, attempt=1, ending=Ending.RELEASED.value, never_started=True))
        for index in range(3)
    ]
    await driver.close()
    assert driver.core.state.parents == {}


class KnownStorage:
    """Storage, with the same content under every key; remembers where it was looked for."""

    addresses: ClassVar[list[str]] = []

    def __init__(self, address: str, *, tls: object) -> None:
        self.addresses.append(address)

    async def get(self, ref: BlobRef) -> bytes:
        return EXPANSION

    async def aclose(self) -> None:
        """Nothing is open."""


def planned(farm: Harness, result: bytes) -> effects.ReadPlan:
    """A plan has run, with this result; nobody has read it yet."""
    worker = farm.worker(types=("s:plan", "s:summarise"))
    task = events.ParentTask(4, 1, b"[1]")
    farm.do(events.ParentsAssigned(job_id="top", epoch=1, template=TaskTemplate(type="s"), tasks=[task]))
    (plan,) = worker.take()
    worker.report(plan, result=result)
    return farm.claim(effects.ReadPlan)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when somebody waits for the first Welcome."""
    waits = asyncio.Event()
    wait = Link.first_attached

    async def first_attached(link: Link) -> None:
        waits.set()
        await wait(link)

    monkeypatch.setattr(Link, "first_attached", first_attached)
    return waits


async def reads(upstream: Upstream, read: effects.ReadPlan, waits: asyncio.Event) -> asyncio.Task[None]:
    """The task that reads a plan, once it waits for the first Welcome or has ended without."""
    upstream.deliver(read)
    (reading,) = upstream._tasks
    waiting = asyncio.create_task(waits.wait())
    await asyncio.wait((reading, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return reading


async def test_a_plan_in_storage_is_read_once_the_orchestrator_above_has_said_where_that_is(
    farm: Harness, waits: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarted without --storage it knows that only from the Welcome; what it said before of its parent would be final."""
    monkeypatch.setattr(inputs, "AsyncStorage", KnownStorage)
    monkeypatch.setattr(KnownStorage, "addresses", [])
    read = planned(farm, IN_STORAGE)
    driver, upstream = make(farm.core, journal=farm.journal)
    posted: list[events.Event] = []
    monkeypatch.setattr(driver, "post", posted.append)
    reading = await reads(upstream, read, waits)
    assert posted == []
    channel = net.open_channel("127.0.0.1:1", None)
    upstream._link._begin(work_queue_pb2.Welcome(epoch=1, storage_address="10.0.0.1:50052"), channel)
    await reading
    assert posted == [EXPANDED]
    assert KnownStorage.addresses == ["10.0.0.1:50052"]
    await channel.close()
    await driver.close()


async def test_a_plan_that_is_at_hand_waits_for_nobody_above(
    farm: Harness, waits: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = planned(farm, EXPANSION)
    driver, upstream = make(farm.core, journal=farm.journal)
    posted: list[events.Event] = []
    monkeypatch.setattr(driver, "post", posted.append)
    await (await reads(upstream, read, waits))
    assert posted == [EXPANDED]
    await driver.close()


async def test_a_plan_in_storage_waits_also_when_the_orchestrator_above_has_not_heard_yet_where_that_is(
    farm: Harness, waits: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started anew itself, and is not attached to the one above it."""
    monkeypatch.setattr(inputs, "AsyncStorage", KnownStorage)
    monkeypatch.setattr(KnownStorage, "addresses", [])
    listens = asyncio.Event()
    hear = Inputs._hear_of_storage

    async def hear_of_storage(inputs: Inputs) -> None:
        listens.set()
        await hear(inputs)

    monkeypatch.setattr(Inputs, "_hear_of_storage", hear_of_storage)
    read = planned(farm, IN_STORAGE)
    driver, upstream = make(farm.core, journal=farm.journal)
    posted: list[events.Event] = []
    monkeypatch.setattr(driver, "post", posted.append)
    reading = await reads(upstream, read, waits)
    channel = net.open_channel("127.0.0.1:1", None)
    upstream._link._begin(work_queue_pb2.Welcome(epoch=1), channel)
    await asyncio.wait((reading, asyncio.create_task(listens.wait())), return_when=asyncio.FIRST_COMPLETED)
    assert posted == []
    upstream._link._begin(work_queue_pb2.Welcome(epoch=1, storage_address="10.0.0.1:50052"), channel)
    await reading
    assert posted == [EXPANDED]
    assert KnownStorage.addresses == ["10.0.0.1:50052"]
    await channel.close()
    await driver.close()


async def test_a_plan_in_storage_is_read_before_the_first_welcome_where_an_earlier_process_heard_of_it(
    farm: Harness, waits: asyncio.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "AsyncStorage", KnownStorage)
    monkeypatch.setattr(KnownStorage, "addresses", [])
    Above(tmp_path).keep(storage_address="10.0.0.1:50052")
    read = planned(farm, IN_STORAGE)
    driver, upstream = make(farm.core, journal=farm.journal, directory=tmp_path)
    posted: list[events.Event] = []
    monkeypatch.setattr(driver, "post", posted.append)
    await (await reads(upstream, read, waits))
    assert posted == [EXPANDED]
    assert (waits.is_set(), KnownStorage.addresses) == (False, ["10.0.0.1:50052"])
    await driver.close()


async def test_that_the_address_of_storage_is_not_known_is_weather_until_it_can_be_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that tasks whose inputs lie there go back never begun."""
    monkeypatch.setattr(inputs, "LEARN_S", 0.0)
    fetched = Inputs("", None)
    for news in (None, "", ""):
        if news is not None:
            assert not fetched.learn(news)
        with pytest.raises(Unavailable, match="has not said yet where that is"):
            await fetched.whole(IN_STORAGE)
    monkeypatch.setattr(inputs, "NONE_AFTER_S", 0.0)
    with pytest.raises(InvalidArgument, match="this orchestrator was given none: start it with --storage"):
        await fetched.whole(IN_STORAGE)


async def test_a_plan_in_storage_where_the_farm_has_none_fails_its_parent(
    farm: Harness, waits: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by a Welcome of some time ago: sooner an orchestrator above that is below another one may not know it itself."""
    monkeypatch.setattr(inputs, "NONE_AFTER_S", 0.0)
    read = planned(farm, IN_STORAGE)
    driver, upstream = make(farm.core, journal=farm.journal)
    posted: list[Any] = []
    monkeypatch.setattr(driver, "post", posted.append)
    channel = net.open_channel("127.0.0.1:1", None)
    upstream._link._begin(work_queue_pb2.Welcome(epoch=1), channel)
    await (await reads(upstream, read, waits))
    (event,) = posted
    assert (event.failure.failure_class, event.failure.message) == (
        FailureClass.INFRA,
        "the plan cannot be fetched: a value lies in Storage, and this orchestrator was given none: start it with --storage",
    )
    await channel.close()
    await driver.close()


async def test_a_plan_that_waits_for_the_first_welcome_ends_with_the_program(
    farm: Harness, waits: asyncio.Event
) -> None:
    read = planned(farm, IN_STORAGE)
    driver, upstream = make(farm.core, journal=farm.journal)
    running = asyncio.create_task(upstream.run())
    reading = await reads(upstream, read, waits)
    running.cancel()
    await asyncio.wait((running, reading))
    assert (running.cancelled(), reading.cancelled()) == (True, True)
    await driver.close()


async def test_it_asks_for_what_keeps_the_slots_below_busy() -> None:
    farm = Harness()
    driver, upstream = make(farm.core, slots=16)

    def asked() -> int:
        upstream._look_below()
        upstream._resize()
        return upstream._window

    assert asked() == 32  # nobody is here yet
    worker = farm.worker("w1", slots=40)
    assert asked() == 80  # how long its tasks take is not known: one waits for each slot
    upstream._sizer.ended(1_000, 100)
    assert asked() == 40 + 4_096 // 40 * 40
    below = farm.worker("cluster", slots=4, window=2_000, orchestrator=True, descendants=("cluster",))
    assert asked() == 2_040 + 4_096 // 2_040 * 2_040
    planner = farm.worker("planner", slots=2, types=("t:plan",))
    assert asked() == 16 + 4_096 // 16 * 16  # what it would expand stays few
    for gone in (worker, below, planner):
        farm.do(events.Goodbye(session=gone.session))
    assert asked() == 32
    upstream.on_drain(1.0)
    assert asked() == 0
    await driver.close()


async def test_who_asks_for_nothing_for_a_moment_or_is_away_for_one_is_counted_on() -> None:
    """A cluster with many reports under way, and those who dial again: else what is asked for would fall and rise all the time."""
    farm = Harness()
    driver, upstream = make(farm.core, slots=16)

    def below() -> int:
        upstream._look_below()
        return upstream._below

    worker = farm.worker("w1", slots=3, types=("other",))
    cluster = farm.worker("cluster", slots=4, window=50, orchestrator=True, descendants=("cluster",))
    farm.create("j", 100)
    held = cluster.take()
    assert (len(held), below()) == (50, 53)
    cluster.credit(0)
    assert below() == 53
    cluster.run(held[:20])
    assert below() == 33
    for one in (worker, cluster):
        one.detach()
    assert below() == 33
    cluster.attach()
    cluster.credit(50)
    assert below() == 53
    cluster.credit(0)
    cluster.run(cluster.take())
    cluster.run(held[20:])
    assert below() == 3, "it holds nothing and asks for nothing"
    farm.wait(13)
    assert below() == 0, "the worker is lost"
    await driver.close()


async def test_it_asks_for_nothing_while_the_disk_is_nearly_full(farm: Harness) -> None:
    """Its own clients are refused then too."""
    driver, upstream = make(farm.core, slots=4)
    windows = []
    for low in (False, True, False):
        farm.do(events.DiskLow(low=low))
        upstream._look_below()
        upstream._resize()
        windows.append(upstream._link._session.window)
    assert windows == [8, 0, 8]
    await driver.close()


async def test_what_takes_long_is_not_asked_for_ahead() -> None:
    """Tasks that run for a second, though others before were short; those that only wait here say nothing."""
    farm = Harness()
    driver, upstream = make(farm.core, slots=16)
    worker = farm.worker("w1", slots=2, window=4)
    upstream._sizer.ended(1_000, 100)
    farm.create("j", 4)
    first, second, *_ = worker.take()
    farm.now = driver.clock.monotonic_ns()
    windows = []
    for token in (None, first, second):
        if token is not None:
            worker.running(token, running_for_s=1.0)
        upstream._look_below()
        upstream._resize()
        windows.append(upstream._window)
    assert windows == [4_098, 4_098, 2]
    await driver.close()


# ---- whose queue it is ----------------------------------------------------------------------------------------------


class SlowJournal(MemoryJournal):
    """Takes records only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_append = threading.Event()

    def append(self, records: Sequence[tuple[int, Record]]) -> None:
        self.may_append.wait(10)
        super().append(records)


def told_by(upstream: Upstream, orchestrator_id: str, channel: Any) -> None:
    """That orchestrator's Welcome has come."""
    upstream._link._begin(work_queue_pb2.Welcome(epoch=1, orchestrator_id=orchestrator_id), channel)


def moved(farm: Harness, directory: Path, journal: MemoryJournal) -> tuple[Driver, Upstream]:
    """Below `first` until now. Of its job one task runs, one waits, and one has ended, which is reported and has no verdict."""
    worker = farm.worker(slots=2)
    tasks = [events.ParentTask(index, 1, b"[1]") for index in range(3)]
    farm.do(events.ParentsAssigned(job_id="top", epoch=1, template=TaskTemplate(type="t"), tasks=tasks))
    worker.credit(1)
    ended, _ = worker.take()
    worker.report(ended)
    farm.drop(effects.ReportParents)
    Above(directory).keep(orchestrator_id="first")
    driver, upstream = make(farm.core, journal=journal, directory=directory)
    upstream._report(("top", 0, 1, 1), OutcomeParts(index=0, attempt=1, ending=Ending.SUCCEEDED.value, result=b"1"))
    return driver, upstream


async def test_what_is_of_another_queue_is_given_up_before_this_one_is_served(farm: Harness, tmp_path: Path) -> None:
    """Its tasks may have the same names; one that has ended here would be recorded for a task that never ran."""
    journal = SlowJournal()
    driver, upstream = moved(farm, tmp_path, journal)
    channel = net.open_channel("127.0.0.1:1", None)
    for _ in range(2):
        with pytest.raises(Unavailable, match="another orchestrator answers than before"):
            told_by(upstream, "second", channel)
        assert (upstream._link.held_count, upstream._link.unacked_count) == (0, 0)
        await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="what is of another orchestrator's queue is given up first"):
        told_by(upstream, "first", channel)  # of what it gave nothing is left to go on with
    assert Above(tmp_path).orchestrator_id == "first"  # a crash now leaves what is to be given up bound
    assert farm.state.parents == {}
    journal.may_append.set()
    assert upstream._moving is not None
    await upstream._moving
    assert Above(tmp_path).orchestrator_id == "second"
    told_by(upstream, "second", channel)
    assert upstream._link._first_attached.is_set()
    await channel.close()
    await driver.close()


@pytest.mark.parametrize(
    ("before", "says", "kept"), [("first", "", "first"), ("first", "first", "first"), ("", "first", "first")]
)
async def test_who_is_the_same_or_does_not_say_who_it_is_is_served_on(
    farm: Harness, tmp_path: Path, before: str, says: str, kept: str
) -> None:
    driver, upstream = moved(farm, tmp_path, farm.journal)
    upstream._above.keep(orchestrator_id=before)
    channel = net.open_channel("127.0.0.1:1", None)
    told_by(upstream, says, channel)
    await asyncio.gather(*upstream._tasks)
    assert (upstream._link.held_count, upstream._link.unacked_count, len(farm.state.parents)) == (3, 1, 3)
    assert Above(tmp_path).orchestrator_id == kept
    await channel.close()
    await driver.close()


async def test_whose_queue_it_is_is_known_and_kept_later_when_it_could_not_be_kept(
    farm: Harness, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is no reason to serve nobody. A crash before it is kept gives up what is of `second`, which comes again."""
    driver, upstream = moved(farm, tmp_path, farm.journal)
    channel = net.open_channel("127.0.0.1:1", None)
    (tmp_path / "upstream.json.new").mkdir()
    with pytest.raises(Unavailable, match="another orchestrator answers than before"):
        told_by(upstream, "second", channel)
    assert upstream._moving is not None
    await upstream._moving
    assert caplog.messages[-1].startswith("what the orchestrator above says of itself cannot be kept: ")
    assert (upstream._link.queue, Above(tmp_path).orchestrator_id) == ("second", "first")
    (tmp_path / "upstream.json.new").rmdir()
    told_by(upstream, "second", channel)
    await asyncio.gather(*upstream._tasks)
    assert Above(tmp_path).orchestrator_id == "second"
    await channel.close()
    await driver.close()


# ---- between the two sides -------------------------------------------------------------------------------------------


class Below:
    """An orchestrator below on the bench: what it posts goes to the farm's core, what it reports waits for the test's verdict."""

    def __init__(self, farm: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
        self.farm = farm
        self.asked, self.fetched = asyncio.Event(), asyncio.Event()
        """Inputs were asked for; they are there."""
        self.drained = asyncio.Event()
        """The core was told of a drain."""
        self._monkeypatch = monkeypatch
        self.start()

    def start(self) -> None:
        """Begin anew with the core that the farm has now."""
        self.driver, self.upstream = make(self.farm.core)
        self._monkeypatch.setattr(self.driver, "post", self._post)
        self._monkeypatch.setattr(self.driver.clock, "monotonic_ns", lambda: self.farm.now)
        self._monkeypatch.setattr(self.upstream._inputs, "resolve", self._resolve)

    def _post(self, event: events.Event) -> None:
        self.farm.feed(event)
        if isinstance(event, events.ParentsDrained):
            self.drained.set()

    async def _resolve(self, group: Any, assignment: work_queue_pb2.Assignment, channel: Any) -> bytes:
        self.asked.set()
        await self.fetched.wait()
        return assignment.payload

    def given(
        self,
        *indices: int,
        attempt: int = 1,
        inputs: bool = False,
        remaining_s: Sequence[float] | None = None,
        **fields: Any,
    ) -> None:
        """A frame of tasks from above, as the link hands it on; `remaining_s`: what is left of the total deadline of each."""
        group = work_queue_pb2.TaskGroup(job_id="top", epoch=1, template=wire.template_to_wire(template(**fields)))
        if inputs:
            group.inputs.append(wire.dependency_to_wire(each("other")))
        for number, index in enumerate(indices):
            assignment = group.assignments.add(index=index, attempt=attempt, payload=b"[1]")
            if remaining_s is not None:
                assignment.remaining.CopyFrom(wire.duration_to_wire(int(remaining_s[number] * SECOND_NS)))
        assert self.upstream._link._take(group)
        self.upstream.on_tasks([group])

    async def fetch(self) -> None:
        """The inputs arrive, and what waited for them goes on."""
        self.fetched.set()
        await asyncio.gather(*self.upstream._tasks)

    def turn(self) -> None:
        """The end of a batch, as the driver does it; what the core gives back is told up-stream."""
        self.farm.place()
        self.farm.commit()
        for effect in self.farm.claim_all(effects.ReleaseParents):
            self.upstream.deliver(effect)

    def judged(self) -> list[Said]:
        """What up-stream was told since the last time, all of it accepted; the core has heard so."""
        session = self.upstream._link._session
        unacked: list[tuple[int, Any]] = session.unacked()
        session.judged(VerdictCode.ACCEPTED, [number for number, _ in unacked], 0, 0)
        self.upstream._tell_acked()
        self.turn()
        return [
            (
                (job_id, parts["index"], epoch, parts["attempt"]),
                Ending(parts["ending"]),
                parts.get("never_started", False),
            )
            for _, (job_id, epoch, parts, _) in unacked
        ]

    def bound(self) -> list[Token]:
        """Tokens of the tasks from above that are bound here."""
        return [parent.token for parent in self.farm.state.parents.values()]


@pytest.fixture
async def below(farm: Harness, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Below]:
    made = Below(farm, monkeypatch)
    yield made
    await made.driver.close()


async def test_a_task_that_is_revoked_while_its_inputs_are_fetched_is_not_begun(below: Below) -> None:
    """Nobody would hear of its end, so that it would stay bound, and its job be kept, until a restart."""
    worker = below.farm.worker(slots=2)
    below.given(0, 1, inputs=True)
    await below.asked.wait()
    below.upstream.on_revoke([("top", 0, 1, 1)], "cancelled")
    assert below.judged() == [(("top", 0, 1, 1), Ending.REVOKED, False)]
    below.upstream.on_revoke([("top", 1, 1, 1)], "cancelled")
    await below.fetch()
    below.turn()
    assert worker.take() == []
    assert below.bound() == []
    assert below.judged() == [(("top", 1, 1, 1), Ending.REVOKED, False)]


@pytest.mark.parametrize("limit_s", [60.0, 0.0], ids=["within its limit", "after it"])
async def test_tasks_that_reach_a_drained_orchestrator_late_go_back_as_never_begun(
    below: Below, limit_s: float
) -> None:
    """Inputs that arrive now, and frames that waited for a commit above while the word of the drain did not."""
    worker = below.farm.worker(slots=4)
    below.given(0, 1, inputs=True)
    await below.asked.wait()
    below.upstream.on_drain(limit_s)
    await loop_is_past(0.0)
    below.given(2, 3)
    below.given(4, inputs=True)
    await below.fetch()
    below.turn()
    assert worker.take() == []
    assert below.bound() == []
    assert sorted(below.judged()) == [(("top", index, 1, 1), Ending.RELEASED, True) for index in range(5)]
    below.upstream.on_welcome(work_queue_pb2.Welcome())  # no drain follows: it is taken back
    below.given(0, attempt=2)
    below.turn()
    assert below.bound() == [("top", 0, 1, 2)]
    assert len(worker.take()) == 1


async def loop_is_past(seconds: float) -> None:
    """Until timers of that length, set before, have been called."""
    past = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, past.set)
    await past.wait()


async def test_inputs_that_arrive_after_a_drain_was_taken_back_are_of_use(below: Below) -> None:
    worker = below.farm.worker()
    below.given(0, inputs=True)
    await below.asked.wait()
    below.upstream.on_drain(60.0)
    below.upstream.on_welcome(work_queue_pb2.Welcome())
    await below.fetch()
    below.turn()
    assert len(worker.take()) == 1
    assert below.judged() == []


async def test_of_what_is_bound_under_an_older_token_the_core_says_in_a_drain_whether_it_has_begun(
    below: Below,
) -> None:
    """What runs goes on under the newer token until the limit; what failed before is not done anew."""
    worker = below.farm.worker(slots=2)
    below.given(0, 1, 2)
    below.turn()
    running, failing = worker.take()
    worker.credit(1)
    worker.fail(failing)
    below.farm.drop(effects.ReportParents)
    below.upstream.on_drain(60.0)
    below.turn()
    assert below.judged() == [(("top", 2, 1, 1), Ending.RELEASED, True)]
    below.farm.feed(events.Credit(session=worker.session, window=2))
    below.given(0, 1, 2, attempt=2)
    below.turn()
    assert worker.take() == []
    assert below.bound() == [("top", 0, 1, 2)]
    assert sorted(below.judged()) == [(("top", index, 1, 2), Ending.RELEASED, True) for index in (1, 2)]
    below.upstream.on_drain(0.0)
    await loop_is_past(0.0)
    below.turn()
    assert below.farm.claim(effects.SendRevoke).tokens == [running]
    assert below.bound() == []
    assert below.judged() == [(("top", 0, 1, 2), Ending.RELEASED, False)]


async def test_what_is_given_back_after_failures_says_up_stream_how_many(below: Below) -> None:
    worker = below.farm.worker(slots=2)
    below.given(0, 1, retry=retrying(3))
    below.turn()
    failing, _ = worker.take()
    worker.fail(failing)
    below.upstream.on_drain(0.0)
    await loop_is_past(0.0)
    below.turn()
    outcomes = [outcome for _, (_, _, outcome, _) in below.upstream._link._session.unacked()]
    assert [(parts["index"], Ending(parts["ending"]), parts.get("app_failures", 0)) for parts in outcomes] == [
        (0, Ending.RELEASED, 1),
        (1, Ending.RELEASED, 0),
    ]
    below.farm.drop(effects.SendRevoke)


async def test_what_turns_out_in_a_drain_not_to_have_begun_goes_back_then(
    below: Below, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is not known yet who holds what, anything may have begun."""
    worker = below.farm.worker()
    below.given(0, 1)
    below.turn()
    (running,) = worker.take()
    await below.driver.close()
    below.farm.restart()
    below.start()
    below.upstream.on_drain(60.0)
    below.turn()
    assert below.judged() == []
    worker.attach()
    below.drained.clear()
    monkeypatch.setattr(upstream_module, "POLL_S", 0.0)
    polls = asyncio.create_task(below.upstream._poll())
    async with asyncio.timeout(5.0):
        await below.drained.wait()
    polls.cancel()
    below.turn()
    assert below.judged() == [(("top", 1, 1, 1), Ending.RELEASED, True)]
    worker.run([running])
    assert worker.take() == []
    below.farm.drop(effects.ReportParents)


@pytest.mark.parametrize(
    ("there", "stays"),
    [
        (None, False),
        ({"types": ("other", "t:summarise")}, False),
        ({"orchestrator": True, "window": 0}, False),  # nobody is there either
        ({"orchestrator": True, "window": 2}, True),
        ({"types": ("t:plan",)}, True),
        ({"types": ("other", "t")}, True),
    ],
)
async def test_what_nobody_here_can_run_for_longer_than_a_lease_goes_back(
    below: Below, there: dict[str, Any] | None, stays: bool
) -> None:
    """Somebody above may be idle. What has begun was given to somebody, and waits for another one."""
    worker = below.farm.worker("first")
    below.given(0, 1)
    below.turn()
    (running,) = worker.take()
    worker.running(running)
    below.upstream._look()
    over_ns = below.farm.now + below.farm.core.config.lease_ns
    worker.detach()
    if there is not None:
        below.farm.worker("second", **{"slots": 1, **there})
    below.farm.drop(effects.SendTasks)
    for ns, asks in ((over_ns, True), (over_ns + 1, stays)):
        assert below.judged() == []
        below.farm.now = ns
        below.upstream._look()
        below.turn()
        assert (below.upstream._window > 0) == asks
    assert below.judged() == ([] if stays else [(("top", 1, 1, 1), Ending.RELEASED, True)])
    assert below.bound() == [("top", index, 1, 1) for index in range(2 if stays else 1)]
    ends = [record.ended[0].failure for record in below.farm.records if isinstance(record, records.TasksEnded)]
    told = [] if stays else ["nobody is attached here who can run it"]
    assert [end.message for end in ends if end is not None] == told
    below.farm.worker("third", slots=0)
    below.upstream._look()
    assert below.upstream._window > 0
    below.farm.drop(effects.SendTasks)


async def test_how_large_a_task_may_be_follows_the_largest_worker_here(below: Below) -> None:
    """One that is away for less than a lease still counts; others than those of its types do not."""

    def cpus() -> float:
        below.upstream._look()
        return below.upstream._link._identity.resources["cpu"]

    assert cpus() == 1  # --upstream-slots
    below.farm.worker("other", slots=64, types=("other",))
    below.farm.worker("idle", slots=32, window=0, orchestrator=True, descendants=("idle",))
    assert cpus() == 1
    below.farm.worker("w4", slots=4)
    large = below.farm.worker("w8", slots=8)
    assert cpus() == 8
    over_ns = below.farm.now + below.farm.core.config.lease_ns
    large.detach()
    below.farm.now = over_ns
    assert cpus() == 8
    below.farm.now += 1
    assert cpus() == 4
    below.farm.worker("below", slots=1, resources={"cpu": 16.0}, orchestrator=True, descendants=("below",))
    assert cpus() == 16


async def test_the_time_in_which_inputs_are_fetched_is_taken_off_the_deadline(below: Below) -> None:
    """What was left is as of when the task came. Where nothing is left any more, the shortest deadline there is says so."""
    worker = below.farm.worker(slots=3)
    below.given(0, 1, inputs=True, remaining_s=[2.0, 0.5])
    below.given(2, remaining_s=[2.0])
    await below.asked.wait()
    below.farm.now += SECOND_NS
    await below.fetch()
    left_ns = {
        parent.index: below.farm.state.jobs[parent.job].template.timeouts.total_ns
        for parent in below.farm.state.parents.values()
    }
    assert left_ns == {0: SECOND_NS, 1: 1, 2: 2 * SECOND_NS}
    below.turn()
    worker.take()
