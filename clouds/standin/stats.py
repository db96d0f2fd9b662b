"""What the stand-in remembers of its visitors, so that tests can prove the etiquette.

Responsible for counting; knows nothing of HTTP. A *request* is one that asked for a picture, redirected or not.
"""

from collections import Counter
from datetime import date


class Stats:
    """Counters over the life of a stand-in; used from its event loop only."""

    def __init__(self) -> None:
        self.requests = 0
        self.answers: Counter[str] = Counter()
        """How many requests ended in `picture` or in which fault."""
        self.concurrent = 0
        self.concurrent_max = 0
        self.early = 0
        """Requests that came before the Retry-After of the answer before was over."""
        self.bytes_sent = 0
        self.user_agents: Counter[str] = Counter()
        self._by_day: Counter[tuple[date, str]] = Counter()
        self._good: Counter[tuple[date, str]] = Counter()
        self._closed_until: dict[tuple[date, str], float] = {}

    def enter(self, day: date, layers: str, user_agent: str, now_s: float) -> int:
        """Count a request and return how many there were before it for the day and layers."""
        key = (day, layers)
        self.requests += 1
        self.user_agents[user_agent] += 1
        self.concurrent += 1
        self.concurrent_max = max(self.concurrent_max, self.concurrent)
        if now_s < self._closed_until.pop(key, now_s):
            self.early += 1
        self._by_day[key] += 1
        return self._by_day[key] - 1

    def resume(self, day: date, layers: str) -> int:
        """Return what `enter` returned to the request whose redirect is now followed; nothing new is counted."""
        self.concurrent += 1
        return max(0, self._by_day[(day, layers)] - 1)

    def leave(self, day: date, layers: str, answer: str) -> None:
        """Count how a request ended."""
        self.concurrent -= 1
        self.answers[answer] += 1
        if answer == "picture":
            self._good[(day, layers)] += 1

    def asked_to_wait(self, day: date, layers: str, until_s: float) -> None:
        """Remember until when the same request should not come again."""
        self._closed_until[(day, layers)] = until_s

    @property
    def needless(self) -> int:
        """Good pictures sent more than once: a client that keeps what it has causes none."""
        return sum(count - 1 for count in self._good.values() if count > 1)

    def as_json(self) -> dict[str, object]:
        """Everything, for people and for tests in other processes."""
        by_day: dict[str, dict[str, int]] = {}
        for (day, layers), count in sorted(self._by_day.items()):
            by_day.setdefault(day.isoformat(), {})[layers] = count
        return {
            "requests": self.requests,
            "answers": dict(sorted(self.answers.items())),
            "concurrent": self.concurrent,
            "concurrent_max": self.concurrent_max,
            "early": self.early,
            "needless": self.needless,
            "bytes_sent": self.bytes_sent,
            "user_agents": dict(sorted(self.user_agents.items())),
            "by_day": by_day,
        }
