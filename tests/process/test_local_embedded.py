"""The farm that `connect()` brings along: durable, shared by the processes of a user, gone when the last one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import antfarm

pytestmark = pytest.mark.slow
ROOT = Path(antfarm.__file__).parents[1]


class User:
    """Runs scripts as a user would, each with the same home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state = home / "state" / "antfarm" / "local"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANTFARM_")}
        self.environment = {**kept, "XDG_STATE_HOME": str(home / "state"), "PYTHONPATH": str(ROOT)}
        self.started: list[subprocess.Popen[str]] = []

    def script(self, name: str, text: str) -> Path:
        path = self.home / name
        path.write_text(textwrap.dedent(text))
        return path

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=self.home,
            env=self.environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def run(self, *words: str | Path, input: str | None = None) -> subprocess.CompletedProcess[str]:
        process = self.start(*words)
        out, err = process.communicate(input, timeout=90)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def programs(self) -> list[str]:
        """Command lines of the programs that run on this user's state."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(str(self.state) in word for word in words) and any(word.startswith("services.") for word in words):
                found.append(" ".join(words))
        return found


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    made = User(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()
    wait_until(lambda: not made.programs(), made.programs)


def wait_until(
    condition: Callable[[], object], state: Callable[[], object] = lambda: "", timeout_s: float = 60.0
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not come true in time: {state()}"
        time.sleep(0.05)


SQUARES = """
    import sys
    import antfarm as af

    def square(x):
        return x * x

    if __name__ == "__main__":
        with af.connect(*sys.argv[1:]) as farm:
            job = farm.map(square, range(1000), job_id="squares-of-1000")
            print(sum(job.results()))
"""


def test_a_script_runs_its_function_and_leaves_no_program(user: User) -> None:
    script = user.script("squares.py", SQUARES)
    first = user.run(script)
    assert (first.returncode, first.stdout, first.stderr) == (0, "332833500\n", "")
    assert user.programs() == []
    second = user.run(script)  # the job is there already: nothing is run again
    assert (second.returncode, second.stdout) == (0, "332833500\n")


def test_the_same_script_runs_on_other_workers_by_its_name(user: User) -> None:
    from antfarm.local import LocalFarm

    script = user.script("squares.py", SQUARES)
    with LocalFarm(user.home / "farm") as farm:
        farm.start_orchestrator()
        for _ in range(3):
            farm.start_worker(slots=1, app=[str(script)])
        done = user.run(script, farm.address)
        assert (done.returncode, done.stdout, done.stderr) == (0, "332833500\n", "")


def test_functions_without_a_name_work_on_a_farm_of_ones_own(user: User) -> None:
    notebook = """
        import collections, math
        import antfarm as af
        @af.task(retries=af.Retry(max_attempts=2))
        def decorated(x): return x + 1
        farm = af.connect()
        k = 5
        print(list(farm.map(lambda x: x + k, range(3)).results()))
        print(list(farm.map(decorated, range(3)).results()))
        print(list(farm.map(math.sqrt, [4, 9]).results()))
        print(farm.submit(lambda: collections.Counter("aab")).result())
        async def later(x): return -x
        print(farm.submit(later, 4).result(), farm.submit(lambda ctx: ctx.attempt).result())
        def nested(x):
            try:
                return af.connect()
            except af.AntFarmError as error:
                return str(error)
        print(farm.submit(nested, 1).result())
    """
    done = user.run("-", input=textwrap.dedent(notebook))
    told = "a task cannot bring a farm of its own: give antfarm.connect() the address of one\n"
    assert done.stdout == "[5, 6, 7]\n[1, 2, 3]\n[2.0, 3.0]\nCounter({'a': 2, 'b': 1})\n-4 1\n" + told, done.stderr
    assert done.returncode == 0


def test_values_of_a_notebooks_classes_go_there_and_back(user: User) -> None:
    notebook = """
        import dataclasses, enum, typing
        import antfarm as af
        @dataclasses.dataclass
        class Box: x: int
        class Colour(enum.Enum): RED = 1
        class Pair(typing.NamedTuple): a: int
        def same(value): return isinstance(value, (Box, Colour, Pair)), value
        def make(x): return Box(x)
        farm = af.connect()
        for value in (Box(1), Colour.RED, Pair(3)):
            known, back = farm.submit(same, value).result()
            print(known, back == value, type(back) is type(value))
        print(list(farm.map(lambda x, box: x + box.x, [1, 2], box=Box(3)).results()))
        print(list(farm.map(lambda box: box.x, farm.map(make, [5, 6])).results()))
    """
    done = user.run("-", input=textwrap.dedent(notebook))
    assert done.stdout == "True True True\n" * 3 + "[4, 5]\n[5, 6]\n", done.stderr
    assert done.returncode == 0


def test_a_script_without_the_guard_is_told_what_to_do(user: User) -> None:
    script = user.script("noguard.py", "import antfarm as af\nfarm = af.connect()\n")
    done = user.run(script)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert 'put that code under `if __name__ == "__main__":`' in last
    assert user.programs() == []


HOLDER = """
    import sys
    import antfarm as af

    def name(x):
        return f"holder {x}"

    if __name__ == "__main__":
        with af.connect() as farm:
            print(farm.address, farm.submit(name, 1).result(), flush=True)
            sys.stdin.readline()
"""

VISITOR = """
    import sys
    import antfarm as af

    def name(x):
        return f"visitor {x}"

    if __name__ == "__main__":
        with af.connect() as farm:
            print(farm.address, farm.submit(name, 2).result(), flush=True)
            sys.stdin.readline()
            print(farm.submit(name, 3).result(), flush=True)
"""


@pytest.mark.parametrize("end", ["goes home", "is killed"])
def test_a_second_process_attaches_and_takes_over(user: User, end: str) -> None:
    holder = user.start(user.script("holder.py", HOLDER))
    assert holder.stdout is not None
    assert holder.stdin is not None
    address, said = holder.stdout.readline().split(" ", 1)
    assert said == "holder 1\n"
    visitor = user.start(user.script("visitor.py", VISITOR))
    assert visitor.stdout is not None
    assert visitor.stdin is not None
    assert visitor.stdout.readline() == f"{address} visitor 2\n"
    assert len([line for line in user.programs() if "services.orchestrator" in line]) == 1
    if end == "goes home":
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.wait(60) == 0
    else:
        holder.kill()
        holder.wait()
    known = user.state / "farm.json"
    wait_until(
        lambda: json.loads(known.read_text()).get("pid") == visitor.pid, lambda: (known.read_text(), user.programs())
    )
    visitor.stdin.write("\n")
    visitor.stdin.flush()
    assert visitor.stdout.readline() == "visitor 3\n"
    assert visitor.wait(60) == 0
    assert json.loads(known.read_text())["orchestrator"] == address
    wait_until(lambda: not user.programs(), user.programs)


CLUMSY = """
    import sys
    import antfarm as af
    from antfarm.errors import Unavailable

    def name(x):
        return f"clumsy {x}"

    if __name__ == "__main__":
        with af.connect() as farm:
            programs, failures = farm.aio._on_close.__self__._programs, int(sys.argv[1])
            start = programs.start_orchestrator

            def start_orchestrator(**options):
                global failures
                failures -= 1
                if failures >= 0:
                    raise Unavailable("not this time")
                return start(**options)

            programs.start_orchestrator = start_orchestrator
            print(farm.address, farm.submit(name, 2).result(), flush=True)
            sys.stdin.readline()
            print(farm.submit(name, 3).result(), flush=True)
"""


def test_a_takeover_that_fails_is_tried_again(user: User) -> None:
    holder = user.start(user.script("holder.py", HOLDER))
    assert holder.stdout is not None
    address = holder.stdout.readline().split()[0]
    clumsy = user.start(user.script("clumsy.py", CLUMSY), "1")
    assert clumsy.stdout is not None
    assert clumsy.stdout.readline() == f"{address} clumsy 2\n"
    holder.kill()
    holder.wait()
    out, err = clumsy.communicate("\n", timeout=60)
    assert (clumsy.returncode, out) == (0, "clumsy 3\n"), err
    assert "the embedded farm is in trouble: not this time; the next try is in 1 s\n" in err
    known = json.loads((user.state / "farm.json").read_text())
    assert (known["orchestrator"], "pid" in known) == (address, False)


def test_a_takeover_that_fails_is_left_to_others(user: User) -> None:
    holder = user.start(user.script("holder.py", HOLDER))
    assert holder.stdout is not None
    address = holder.stdout.readline().split()[0]
    clumsy = user.start(user.script("clumsy.py", CLUMSY), "1000")
    assert clumsy.stdout is not None
    assert clumsy.stderr is not None
    assert clumsy.stdout.readline() == f"{address} clumsy 2\n"
    holder.kill()
    holder.wait()
    assert "not this time" in clumsy.stderr.readline()
    third = user.start(user.script("third.py", HOLDER))
    assert third.stdout is not None
    assert third.stdout.readline() == f"{address} holder 1\n"
    out, err = clumsy.communicate("\n", timeout=60)
    assert (clumsy.returncode, out) == (0, "clumsy 3\n"), err
    out, err = third.communicate("\n", timeout=60)
    assert (third.returncode, out, err) == (0, "", "")


def test_work_of_a_killed_process_goes_on_at_the_next_connect(user: User) -> None:
    script = user.script(
        "later.py",
        """
        import os, sys, time
        import antfarm as af

        def slow(x):
            if x == 5:
                while not os.path.exists("go"):
                    time.sleep(0.01)
            return x

        if __name__ == "__main__":
            farm = af.connect(slots=1)
            job = farm.map(slow, range(10), job_id="later")
            print("submitted", flush=True)
            print(list(job.results()), flush=True)
        """,
    )
    first = user.start(script)
    assert first.stdout is not None
    assert first.stdout.readline() == "submitted\n"
    first.kill()
    first.wait()
    (user.home / "go").touch()
    second = user.run(script)
    assert second.stdout == "submitted\n[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n", second.stderr
    wait_until(lambda: not user.programs(), user.programs)


@pytest.mark.parametrize(
    "waiting", ["future.result()", "list(future.job.results())", "list(farm.as_completed(future.job))"]
)
def test_ctrl_c_ends_it_at_once_and_leaves_no_program(user: User, waiting: str) -> None:
    script = user.script(
        "endless.py",
        """
        import signal, sys, time
        import antfarm as af

        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background has it ignored

        def endless(x):
            open("started", "w").close()
            time.sleep(1000)

        if __name__ == "__main__":
            with af.connect() as farm:
                end = farm.aio.end
                farm.aio.end = lambda *, now: (print(f"now={now}", flush=True), end(now=now))
                future = farm.submit(endless, 1)
                eval(sys.argv[1])
        """,
    )
    process = user.start(script, waiting)
    wait_until((user.home / "started").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.splitlines()[-1]) == (-signal.SIGINT, "now=True\n", "KeyboardInterrupt")
    wait_until(lambda: not user.programs(), user.programs)


@pytest.mark.parametrize("face", ["blocking", "asynchronous"])
def test_who_exits_lets_running_tasks_finish(user: User, face: str) -> None:
    script = user.script(
        "exits.py",
        """
        import asyncio, os, sys, time
        import antfarm as af

        HERE = os.path.dirname(os.path.abspath(__file__))

        def slow(x):
            open(f"{HERE}/began", "w").close()
            time.sleep(2)
            open(f"{HERE}/ended", "w").close()

        def await_begin():
            while not os.path.exists(f"{HERE}/began"):
                time.sleep(0.01)

        async def main():
            async with await af.aio.connect(slots=1) as farm:
                farm.submit(slow, 1)
                await asyncio.to_thread(await_begin)
                sys.exit(3)

        if __name__ == "__main__":
            if sys.argv[1] == "asynchronous":
                asyncio.run(main())
            with af.connect(slots=1) as farm:
                farm.submit(slow, 1)
                await_begin()
                sys.exit(3)
        """,
    )
    done = user.run(script, face)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    assert (user.home / "ended").exists()
    assert user.programs() == []


def test_a_worker_that_dies_is_started_again(user: User) -> None:
    script = user.script(
        "my squares.py",
        """
        import os, signal
        import antfarm as af

        def square(x):
            return x * x

        if __name__ == "__main__":
            with af.connect() as farm:
                print(farm.submit(square, 3).result())
                [worker] = [w for w in farm.aio._on_close.__self__._programs.programs.values() if w.role == "worker"]
                os.kill(worker.pid, signal.SIGKILL)
                print(farm.submit(square, 4).result())
        """,
    )
    done = user.run(script)
    assert (done.returncode, done.stdout) == (0, "9\n16\n"), done.stderr
    assert "died and is started again" in done.stderr


def test_programs_that_are_started_again_hold_the_lock_as_before(user: User) -> None:
    script = user.script(
        "locked.py",
        """
        import os, signal, subprocess, threading
        import antfarm as af

        def square(x):
            return x * x

        def holds(pid):
            return str(lock) in subprocess.check_output(["ls", "-l", f"/proc/{pid}/fd"], text=True)

        if __name__ == "__main__":
            with af.connect(slots=1) as farm:
                embedded = farm.aio._on_close.__self__
                lock, programs, again = embedded._directory / "lock", embedded._programs, threading.Event()
                restart = programs.restart
                programs.restart = lambda name: (restart(name), again.set())
                for program in list(programs.programs.values()):
                    before = holds(program.pid)
                    again.clear()
                    os.kill(program.pid, signal.SIGKILL)
                    assert again.wait(60)
                    print(program.role, before, holds(program.pid))
                print(farm.submit(square, 4).result())
        """,
    )
    done = user.run(script)
    assert done.stdout == "storage True True\norchestrator True True\nworker False False\n16\n", done.stderr
    assert done.returncode == 0


def test_a_script_may_end_without_closing_anything(user: User) -> None:
    script = user.script(
        "careless.py",
        """
        import antfarm as af

        def square(x):
            return x * x

        if __name__ == "__main__":
            farm = af.connect()
            values = farm.map(square, range(50_000)).results()
            done = farm.map(square, range(1000)).as_completed()
            print(next(values), next(done).result() >= 0)
        """,
    )
    done = user.run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 True\n", "")
    assert user.programs() == []


RUN = """
    import sys
    import antfarm as af

    def work(x):
        return {said!r}

    @af.task(name="shared.name")
    def named(x):
        return {said!r}

    if __name__ == "__main__":
        def guarded(x):
            return {said!r}

        with af.connect(slots=1) as farm:
            print("connected", flush=True)
            sys.stdin.readline()
            print(*sorted(set(farm.map(work, range(30)).results())))
            print(*{{farm.submit(each, 1).result() for each in (work, named, guarded) for _ in range(5)}}, flush=True)
            sys.stdin.readline()
"""


def test_scripts_of_one_file_name_run_their_own_functions(user: User) -> None:
    processes = []
    for said in ("one", "two"):
        (user.home / said).mkdir()
        processes.append(user.start(user.script(f"{said}/run.py", RUN.format(said=said))))
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process, said in zip(processes, ("one", "two"), strict=True):
        assert process.stdout is not None
        assert (process.stdout.readline(), process.stdout.readline()) == (f"{said}\n", f"{said}\n")
    for process in processes:
        out, err = process.communicate("\n", timeout=60)
        assert (process.returncode, out, err) == (0, "", "")


LEFT = """
    import time
    import antfarm as af

    def work(x):
        time.sleep(0.01)
        return __file__

    if __name__ == "__main__":
        with af.connect(slots=1) as farm:
            farm.map(work, range(2000), job_id="left").pause()
"""
LATER = """
    import sys
    import antfarm as af

    def work(x):
        return __file__

    if __name__ == "__main__":
        with af.connect(slots=1) as farm:
            job = farm.job("left")
            job.resume()
            try:
                print(*set(job.wait(timeout=float(sys.argv[1])) and job.results()))
            except TimeoutError:
                print(job.explain())
"""


def test_a_job_of_a_script_waits_for_that_script_and_not_for_one_of_its_name(user: User) -> None:
    for directory in ("mine", "other"):
        (user.home / directory).mkdir()
    script = user.script("mine/run.py", LEFT)
    assert user.run(script).returncode == 0
    other = user.run(user.script("other/run.py", LATER), "2")
    assert other.stdout.startswith("Job left (run.work) is RUNNING: "), other.stdout + other.stderr
    assert f"has label script={user.home}/other/run.py, and {script} is asked for" in other.stdout
    again = user.run(user.script("mine/run.py", LATER), "60")
    assert again.stdout == f"{script}\n", again.stderr


def test_a_process_may_connect_again_while_it_is_connected(user: User) -> None:
    script = user.script(
        "twice.py",
        """
        import os, time
        import antfarm as af

        GO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "go")
        BEGAN = GO + "-began"

        def keep(ctx):
            path = ctx.scratch / "kept.txt"
            path.write_text("kept")
            open(BEGAN, "w").close()
            while not os.path.exists(GO):
                time.sleep(0.01)
            return path.read_text()

        def square(x):
            return x * x

        if __name__ == "__main__":
            first = af.connect(slots=1)
            kept = first.submit(keep)
            while not os.path.exists(BEGAN):
                first.flush()
            with af.connect(slots=1) as second:
                print(second.address == first.address, second.submit(square, 3).result())
            open(GO, "w").close()
            print(kept.result(), first.submit(square, 4).result())
        """,
    )
    done = user.run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 9\nkept 16\n", "")
    assert not list(user.state.glob("worker-*"))


def test_functions_of_a_notebook_use_modules_that_it_can_import(user: User) -> None:
    user.script("helper.py", "def triple(x): return 3 * x\n")
    (user.home / "further").mkdir()
    user.script("further/beyond.py", "def halve(x): return x // 2\n")
    notebook = """
        import sys
        import antfarm as af
        import helper
        sys.path.append("further")
        import beyond
        with af.connect(slots=1) as farm:
            print(farm.submit(lambda x: helper.triple(x), 2).result(), farm.submit(helper.triple, 3).result())
            print(farm.submit(beyond.halve, 8).result())
    """
    done = user.run("-", input=textwrap.dedent(notebook))
    assert (done.returncode, done.stdout, done.stderr) == (0, "6 9\n4\n", "")


def test_a_forked_process_is_told_what_to_do_and_its_end_leaves_the_farm_alone(user: User) -> None:
    script = user.script(
        "forked.py",
        """
        import os, signal, sys
        import antfarm as af

        def square(x):
            return x * x

        def tell(call):
            try:
                print(call(), flush=True)
            except af.AntFarmError as error:
                print(type(error).__name__, error, flush=True)

        if __name__ == "__main__":
            with af.connect(slots=1) as farm:
                values, waits = farm.map(square, range(1000)).results(), farm.submit(square, 3)
                print(next(values), flush=True)
                child = os.fork()
                if child == 0:
                    signal.alarm(30)
                    for call in (lambda: farm.submit(square, 5), lambda: waits.result(5), lambda: next(values), af.connect):
                        tell(call)
                    del values
                    sys.exit(3)
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                print(next(values), farm.submit(square, 4).result())
        """,
    )
    done = user.run(script)
    told = (
        "WrongState this process was forked from one that had connected to a farm, and cannot use that: "
        'start it by multiprocessing.get_context("spawn") and connect() there\n'
    )
    lines = done.stdout.splitlines(keepends=True)
    assert (done.returncode, lines[0], lines[-2:]) == (0, "0\n", ["3\n", "1 16\n"]), (done.stdout, done.stderr)
    assert (lines[1:3], lines[-3], done.stderr) == ([told, told], told, "")
    assert user.programs() == []
