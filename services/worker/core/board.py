"""Which attempt runs where: the waiting ones, the lanes, the free resources.

It decides; the driver carries out. Nothing here takes time per task but a few container operations: a batch is handled as one.
Invariants (`check`): an attempt is in exactly one place; `free` is the capacity less what the lanes hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from antfarm.model import SECOND_NS
from services.worker.core.attempt import Attempt, Group
from services.worker.core.lane import Lane

FEED_SHORT_S = 0.02
"""Tasks that take longer are not fed ahead: another child may be free first, and the agent's reaction costs them little."""
FEED_LEAD_S = 0.15
"""Work that is fed to a child ahead: enough that its results can be taken many at a time, little enough to take back."""
FEED_MAX = 1_024
FEED_BYTES_MAX = 1024 * 1024
STUCK_NS = SECOND_NS // 20
"""A child busy with one task for this long gives back what waits behind it."""
STALE_NS = 2 * SECOND_NS
"""An attempt that waits here for this long goes back to the orchestrator: another worker may be free."""
LANES_MAX = 256
STARTING_MAX = 8
"""Children that start at the same time; each costs a tenth of a second of CPU."""

Feed = tuple[Lane, list[Attempt]]


class Board:
    """Owner of all attempts between their arrival and their report."""

    def __init__(self, capacity: Mapping[str, float]) -> None:
        """Make a board for a worker that offers `capacity`; "cpu" is its number of slots."""
        self.capacity = dict(capacity)
        self.free = dict(capacity)
        self.lanes: dict[int, Lane] = {}
        self.waiting_plain: deque[Attempt] = deque()
        self.waiting_loop: deque[Attempt] = deque()

    # ---- looks ------------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """True when there is no attempt."""
        return not self.waiting_plain and not self.waiting_loop and not any(lane.fed for lane in self.lanes.values())

    def running(self) -> Iterable[tuple[Lane, Attempt]]:
        """All that run."""
        for lane in self.lanes.values():
            for attempt in lane.running:
                yield lane, attempt

    def check(self) -> None:
        """Assert the invariants; for tests and after surprises."""
        held = dict.fromkeys(self.capacity, 0.0)
        seen: set[int] = set()
        for lane in self.lanes.values():
            costs = [a.group.cost for a in lane.fed] if lane.is_loop else [lane.cost]
            assert lane.is_loop or bool(lane.cost) == bool(lane.fed), "a plain lane holds resources while it has a task"
            for cost in costs:
                for name, amount in cost.items():
                    held[name] = held.get(name, 0.0) + amount
            seen.update(map(id, lane.fed))
        count = sum(len(lane.fed) for lane in self.lanes.values())
        for waiting in (self.waiting_plain, self.waiting_loop):
            seen.update(map(id, waiting))
            count += len(waiting)
        assert len(seen) == count, "an attempt is in two places"
        for name, amount in self.capacity.items():
            assert abs(self.free[name] - (amount - held[name])) < 1e-6, f"{name}: free is not capacity less held"

    def _fits(self, cost: Mapping[str, float]) -> bool:
        free = self.free
        if all(free.get(name, 0.0) >= amount - 1e-9 for name, amount in cost.items()):
            return True
        # What is larger than the whole worker runs alone rather than never.
        return free == self.capacity

    def _take(self, cost: Mapping[str, float]) -> None:
        for name, amount in cost.items():
            self.free[name] = self.free.get(name, 0.0) - amount

    def _give(self, cost: Mapping[str, float]) -> None:
        for name, amount in cost.items():
            self.free[name] = self.free.get(name, 0.0) + amount  # 0 of what the worker lacks fits too
        if not any(lane.fed for lane in self.lanes.values()):
            self.free = dict(self.capacity)  # fractions do not add up for ever

    # ---- in ---------------------------------------------------------------------------------------------------------

    def add(self, attempts: Iterable[Attempt], *, is_async: bool) -> None:
        """New attempts, all of one kind."""
        (self.waiting_loop if is_async else self.waiting_plain).extend(attempts)

    def open_lane(self, number: int, *, is_loop: bool) -> Lane:
        """A child was started."""
        lane = self.lanes[number] = Lane(number, is_loop=is_loop)
        return lane

    # ---- decisions --------------------------------------------------------------------------------------------------

    def dispatch(self, now_ns: int) -> list[Feed]:
        """What to feed to whom now. The attempts count as fed."""
        feeds: list[Feed] = []
        plain, loop = self.waiting_plain, self.waiting_loop
        if plain and loop and plain[0].since_ns < loop[0].since_ns:  # whoever has waited longer first
            self._dispatch_plain(now_ns, feeds)
        if loop:
            self._dispatch_loop(now_ns, feeds)
        if plain:
            self._dispatch_plain(now_ns, feeds)
        return feeds

    def _dispatch_loop(self, now_ns: int, feeds: list[Feed]) -> None:
        lane = next((lane for lane in self.lanes.values() if lane.is_loop and lane.usable), None)
        if lane is None:
            return
        batch = []
        waiting = self.waiting_loop
        while waiting and self._fits(waiting[0].group.cost) and not self._is_due(self.waiting_plain, waiting[0]):
            attempt = waiting.popleft()
            self._take(attempt.group.cost)
            lane.feed(attempt, now_ns)
            batch.append(attempt)
        if batch:
            feeds.append((lane, batch))

    def _dispatch_plain(self, now_ns: int, feeds: list[Feed]) -> None:
        waiting = self.waiting_plain
        batches: dict[int, list[Attempt]] = {}
        busy = []
        for lane in self.lanes.values():
            if lane.is_loop or not lane.usable:
                continue
            if not lane.fed:
                if not waiting or not self._fits(waiting[0].group.cost) or self._is_due(self.waiting_loop, waiting[0]):
                    continue
                attempt = waiting.popleft()
                lane.cost = attempt.group.cost
                self._take(lane.cost)
                lane.feed(attempt, now_ns)
                batches[lane.number] = [attempt]
            if not lane.stopping:
                busy.append(lane)
        left = len(busy)
        for lane in busy:
            if not waiting:
                break
            batch = self._more(lane, -(-len(waiting) // left), now_ns)
            left -= 1
            if batch:
                batches.setdefault(lane.number, []).extend(batch)
        feeds.extend((self.lanes[number], batch) for number, batch in batches.items())

    def _is_due(self, others: deque[Attempt], candidate: Attempt) -> bool:
        """Whether the first of the other kind has waited longer and lacks room: small tasks must not starve large ones."""
        return bool(others) and others[0].since_ns < candidate.since_ns and not self._fits(others[0].group.cost)

    def _more(self, lane: Lane, share: int, now_ns: int) -> list[Attempt]:
        """Attempts to wait in the child behind its running one, of a like kind, as many as are soon run."""
        waiting = self.waiting_plain
        group = waiting[0].group
        depth = _depth(group)
        if len(lane.fed) > 1 + depth // 2:
            return []
        room = min(1 + depth - len(lane.fed), share)
        batch: list[Attempt] = []
        while room > 0 and waiting and lane.bytes_fed < FEED_BYTES_MAX:
            head = waiting[0]
            if head.group is not group:
                group = head.group
                if _depth(group) < len(lane.fed):
                    break
            if group.cost != lane.cost or group.at_most_once:
                break
            waiting.popleft()
            lane.feed(head, now_ns)
            batch.append(head)
            room -= 1
        return batch

    def lanes_wanted(self) -> tuple[int, int]:
        """(plain, loop) children to start now, besides those that are starting."""
        plain = loop = 0
        if self.waiting_loop and not any(lane.is_loop and not lane.doomed for lane in self.lanes.values()):
            loop = 1
        if self.waiting_plain and self._fits(self.waiting_plain[0].group.cost) and len(self.lanes) < LANES_MAX:
            idle = sum(not lane.is_loop and not lane.doomed and not lane.fed for lane in self.lanes.values())
            cpu = max(self.waiting_plain[0].group.cost.get("cpu", 1.0), 0.01)
            could_run = max(int(self.free.get("cpu", 0.0) / cpu + 1e-9), 1)
            plain = max(min(len(self.waiting_plain), could_run) - idle, 0)
        starting = sum(not lane.ready for lane in self.lanes.values())
        return max(min(plain, LANES_MAX - len(self.lanes), STARTING_MAX - starting), 0), loop

    # ---- ends -------------------------------------------------------------------------------------------------------

    def settle(self, lane: Lane, ended: Iterable[Attempt], now_ns: int) -> None:
        """Attempts of the lane have ended (`Lane.finish` was called for each): free what they held."""
        if lane.is_loop:
            for attempt in ended:
                self._give(attempt.group.cost)
            return
        lane.since_ns = now_ns
        if not lane.fed and lane.cost:
            cost, lane.cost = lane.cost, {}
            self._give(cost)

    def close_lane(self, lane: Lane) -> list[Attempt]:
        """The child is dead. What was fed to it and had not ended, in order; it holds nothing any more."""
        del self.lanes[lane.number]
        left = list(lane.fed)
        lane.fed.clear()
        costs = [attempt.group.cost for attempt in left] if lane.is_loop else [lane.cost]
        lane.cost = {}
        for cost in costs:
            self._give(cost)
        return left

    def put_back(self, attempts: list[Attempt]) -> None:
        """Attempts that never started wait again, in front."""
        for attempt in reversed(attempts):
            attempt.seq = 0
            (self.waiting_loop if attempt.group.is_async else self.waiting_plain).appendleft(attempt)

    def stuck(self, now_ns: int) -> list[Lane]:
        """Plain lanes whose running task turned out long while others wait behind it."""
        return [
            lane
            for lane in self.lanes.values()
            if not lane.is_loop and len(lane.fed) > 1 and now_ns - lane.since_ns > STUCK_NS
        ]

    def withdraw(self, wanted: Callable[[Attempt], bool]) -> list[Attempt]:
        """Take waiting attempts off the board."""
        taken: list[Attempt] = []
        for name in ("waiting_plain", "waiting_loop"):
            waiting: deque[Attempt] = getattr(self, name)
            found = [attempt for attempt in waiting if wanted(attempt)]
            if found:
                gone = set(map(id, found))
                setattr(self, name, deque(attempt for attempt in waiting if id(attempt) not in gone))
                taken += found
        return taken

    def stale(self, now_ns: int) -> list[Attempt]:
        """Take off what has waited for too long."""
        oldest = min((queue[0].since_ns for queue in (self.waiting_plain, self.waiting_loop) if queue), default=now_ns)
        if now_ns - oldest <= STALE_NS:
            return []
        return self.withdraw(lambda attempt: now_ns - attempt.since_ns > STALE_NS)


def _depth(group: Group) -> int:
    """How many tasks of a kind wait in a child behind the running one."""
    mean_s = group.estimate.mean_s
    if mean_s is None or mean_s > FEED_SHORT_S:
        return 0
    return min(int(FEED_LEAD_S / max(mean_s, 1e-6)), FEED_MAX)
