"""What every peer is asked to do, and how its driver answers: one JSON line for each request, on stdin and stdout.

A driver runs in the peer's own environment, so this file and the drivers use the standard library and the peer alone. The parent measures CPU and
memory from outside: it marks the environment of the driver, which all processes of the peer inherit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

SLOTS = 2
"""Tasks that run at a time."""
BURN_MS = 10
"""CPU time of the tasks that are not empty."""


def noop(number: int) -> int:
    """The empty task."""
    return number


def burn(number: int) -> int:
    """A task of 10 ms of CPU."""
    end = time.thread_time_ns() + BURN_MS * 1_000_000
    while time.thread_time_ns() < end:
        pass
    return number


class Peer(ABC):
    """One system with two slots. Each method returns when the work is done and all results are here."""

    no_trips = ""
    """Why the time of a single task says nothing of the peer."""

    @abstractmethod
    def start(self) -> None:
        """Start all of its programs."""

    @abstractmethod
    def run(self, function: Callable[[int], int], count: int) -> Sequence[int]:
        """Run function(0) … function(count - 1), submitted as the peer submits many at once; the results in order."""

    @abstractmethod
    def one(self, number: int) -> int:
        """Run noop(number) and wait for it."""

    def scheduler(self) -> Sequence[int]:
        """Process ids of what only distributes: scheduler, server, broker. None where the caller does it."""
        return ()

    def workers(self) -> Sequence[int]:
        """Process ids of what executes and may be killed."""
        return ()

    def revive(self) -> bool:
        """Do what the peer's supervisor would do after a worker was killed. False where the peer does it by itself."""
        return False

    def hold(self, count: int) -> bool:
        """Submit so many tasks that nobody can run. False where the peer has no such thing."""
        return False

    @abstractmethod
    def stop(self) -> None:
        """End all of its programs."""


def _burst(peer: Peer, function: Callable[[int], int], count: int) -> dict[str, Any]:
    began = time.perf_counter()
    results = peer.run(function, count)
    seconds = time.perf_counter() - began
    if list(results) != list(range(count)):
        raise RuntimeError("the results are wrong")
    return {"seconds": seconds}


def _trips(peer: Peer, count: int) -> dict[str, Any]:
    if peer.no_trips:
        raise RuntimeError(peer.no_trips)
    seconds = []
    for number in range(count):
        began = time.perf_counter()
        result = peer.one(number)
        seconds.append(time.perf_counter() - began)
        if result != number:
            raise RuntimeError("the result is wrong")
    return {"seconds": seconds}


def _begin(peer: Peer) -> dict[str, Any]:
    began = time.perf_counter()
    peer.start()
    peer.one(0)
    return {"seconds": time.perf_counter() - began}


def _kill(peer: Peer, count: int, after_s: float) -> dict[str, Any]:
    """Kill a worker while it works; how long all results take from then on."""
    victims = list(peer.workers())
    if not victims:
        return {"seconds": None}
    killed = [0.0]

    def strike(*_: object) -> None:
        os.kill(victims[0], signal.SIGKILL)
        killed[0] = time.perf_counter()
        peer.revive()

    signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    _burst(peer, burn, count)
    return {"seconds": time.perf_counter() - killed[0] if killed[0] else None}


def serve(peer: Peer) -> None:
    """Answer requests until there are no more."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        for line in sys.stdin:
            order = json.loads(line)
            answer: dict[str, Any]
            try:
                match order["do"]:
                    case "start":
                        answer = _begin(peer)
                    case "burst":
                        answer = _burst(peer, noop, order["count"])
                    case "burn":
                        answer = _burst(peer, burn, order["count"])
                    case "trips":
                        answer = _trips(peer, order["count"])
                    case "hold":
                        answer = {"held": peer.hold(order["count"])}
                    case "kill":
                        answer = _kill(peer, order["count"], order["after_s"])
                    case "scheduler":
                        answer = {"pids": list(peer.scheduler())}
                    case unknown:
                        raise ValueError(f"nothing is known of {unknown}")
            except Exception as error:  # whatever a peer throws is its answer
                answer = {"error": f"{type(error).__name__}: {error}"[:300]}
            out.write(json.dumps(answer) + "\n")
            out.flush()
    finally:
        peer.stop()
