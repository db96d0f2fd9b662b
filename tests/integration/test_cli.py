"""The command line on real programs: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import client_app
import pytest

import antfarm as af
from antfarm.address import own_address
from antfarm.local import LocalFarm

pytestmark = pytest.mark.slow
APP = str(Path(client_app.__file__))
ROOT = Path(af.__file__).parents[1]


class Cli:
    """Runs `antfarm` against one farm."""

    def __init__(self, farm: LocalFarm, home: Path) -> None:
        self.farm = farm
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANTFARM_")}
        self.environment = {**kept, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(home / "state")}

    def start(self, *words: str, connect: bool = True) -> subprocess.Popen[str]:
        environment = {**self.environment, **({"ANTFARM_ADDRESS": self.farm.address} if connect else {})}
        return subprocess.Popen(
            [sys.executable, "-m", "antfarm.cli", *words],
            cwd=self.home,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, *words: str, code: int = 0, input: str | None = None, connect: bool = True) -> tuple[str, str]:
        process = self.start(*words, connect=connect)
        out, err = process.communicate(input, timeout=60)
        assert process.returncode == code, (out, err)
        assert "Traceback" not in err
        return out, err

    def json(self, *words: str) -> list[dict[str, object]]:
        out, _ = self(*words, "--output", "json")
        found = json.loads(out)
        return found if isinstance(found, list) else [found]


@pytest.fixture(scope="module")
def programs() -> Iterator[LocalFarm]:
    with LocalFarm() as farm:
        farm.start_storage()
        farm.start_orchestrator()
        farm.start_worker(slots=2, app=[APP])
        yield farm


@pytest.fixture
def cli(programs: LocalFarm, tmp_path: Path) -> Cli:
    return Cli(programs, tmp_path)


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


# ---- run ------------------------------------------------------------------------------------------------------------


def test_run_prints_outputs_in_input_order_on_request(cli: Cli) -> None:
    out, err = cli("run", "-k", "--", "echo", "<{}>", ":::", "c", "a b", "$HOME")
    assert out == "<c>\n<a b>\n<$HOME>\n"
    assert err == ""


def test_run_takes_lines_of_standard_input(cli: Cli) -> None:
    out, _ = cli("run", "-k", "echo {} | tr a-c x-z", input="a\nb\nc c\n")
    assert out == "x\ny\nz z\n"


def test_run_combines_lists_and_tags_lines(cli: Cli) -> None:
    out, _ = cli("run", "-k", "--tag", "--", "echo", "{2}-{1}-{#}", ":::", "a", "b", ":::", "1", "2")
    assert out == "a 1\t1-a-1\na 2\t2-a-2\nb 1\t1-b-3\nb 2\t2-b-4\n"


def test_run_takes_files_of_arguments_and_refuses_linked_lists(cli: Cli) -> None:
    (cli.home / "names.txt").write_text("a b\nc\n")
    out, _ = cli("run", "-k", "--", "echo", "{1}-{2}", "::::", "names.txt", ":::", "1", "2")
    assert out == "a b-1\na b-2\nc-1\nc-2\n"
    process = cli.start("run", "--", "echo", "{1}-{2}", ":::+", "a", "b")  # its standard input stays open
    assert process.wait(30) == 2
    _, err = process.communicate()
    assert err.startswith("antfarm: `:::+` is not supported: ")
    assert err.count("\n") == 1


def test_run_says_what_failed_and_ends_with_1(cli: Cli) -> None:
    out, err = cli("run", "--", "sh", "-c", "echo out {}; echo err >&2; exit {}", ":::", "0", "3", code=1)
    assert "out 0\n" in out
    assert "out 3" in err
    assert re.search(r"^antfarm run: 3: exit code 3", err, re.M)


def test_run_without_failures_may_say_much(cli: Cli) -> None:
    out, _ = cli("run", "--", "seq", "{}", ":::", "50000")
    assert out.endswith("\n50000\n")


def test_a_command_of_any_letters_names_its_job(cli: Cli) -> None:
    cli("run", "--", "true", 200 * "雲", "{}", ":::", "x")
    [name] = [job["name"] for job in cli.json("job", "list", "--limit", "1")]
    assert str(name).startswith("true '雲雲")


def test_run_shows_what_it_would_do(cli: Cli) -> None:
    out, _ = cli("run", "--dry-run", "--", "convert", "{}", "{/.}.png", ":::", "d/a b.jpg", connect=False)
    assert out == "convert 'd/a b.jpg' 'a b.png'\n"
    _, err = cli("run", "--dry-run", "--retries", "-1", "--", "true", ":::", "x", code=2, connect=False)
    assert err.startswith("antfarm: --retries -1: give 0 to")
    _, err = cli("submit", "x", "--dry-run", "--max-failures", "-1", code=2, connect=False)
    assert err.startswith("antfarm: --max-failures -1: give 0 or more")
    _, err = cli("run", code=2, connect=False)
    assert err.startswith("antfarm: no command: write e.g.")


def test_letters_that_the_output_lacks_are_escaped(cli: Cli) -> None:
    cli.environment["PYTHONIOENCODING"] = "latin-1"
    assert cli("run", "--dry-run", "--", "echo", "{}", ":::", "\u2602")[0] == "echo '\\u2602'\n"


def test_run_hands_over_variables_and_refuses_one_that_is_not_set(cli: Cli) -> None:
    out, _ = cli("run", "--env", "GIVEN=1 2", "--env", "HOME", "--", "sh", "-c", "echo $GIVEN $HOME", ":::", "x")
    assert out == f"1 2 {cli.environment['HOME']}\n"
    _, err = cli("run", "--env", "NOPE", "--", "true", ":::", "x", code=2)
    assert err == "antfarm: --env NOPE: it is not set here; set it, or write --env NOPE=VALUE\n"


def test_a_word_that_is_not_utf_8_is_refused_in_one_line(cli: Cli) -> None:
    for words in (("submit", "x", "--name", "\udc80"), ("submit", "\udc80"), ("job", "show", "\udc80")):
        _, err = cli(*words, code=2)
        assert "udc80" in err
        assert err.count("\n") == 1


def test_a_list_of_less_than_nothing_is_refused(cli: Cli) -> None:
    for noun in ("job", "task"):
        _, err = cli(noun, "list", "--limit", "-1", code=2)
        assert err == "antfarm: --limit -1: give 1 or more, or 0 for all\n"
    _, err = cli("worker", "drain", "w1", "--limit", "soon", code=2)
    assert err.startswith("antfarm: --limit: ")


def test_run_without_address_brings_its_own_farm_and_stands_here(cli: Cli) -> None:
    (cli.home / "a.txt").write_text("one\ntwo\n")
    out, _ = cli("run", "--", "wc", "-l", ":::", "a.txt", connect=False)
    assert out == "2 a.txt\n"


def test_run_shows_outputs_while_standard_input_still_flows(cli: Cli) -> None:
    process = cli.start("run", "--", "echo", "{}")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("first\n")
    process.stdin.flush()
    assert process.stdout.readline() == "first\n"
    out, _ = process.communicate("second\n", timeout=30)
    assert (out, process.returncode) == ("second\n", 0)


def test_an_interrupted_run_cancels_its_job_and_ends_with_4(cli: Cli) -> None:
    process = cli.start("run", "--name", "interrupted", "--", "sleep", "{}", ":::", "600")
    wait_until(lambda: any(job["name"] == "interrupted" for job in cli.json("job", "list")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 4
    [job] = cli.json("job", "list", "--name", "interrupted")
    assert job["state"] == "CANCELLED"
    said = f"job {job['job']} was cancelled (`antfarm job retry {job['job']}` repeats it)"
    assert err == f"antfarm: interrupted; {said}\n"


def test_a_run_whose_reader_has_enough_cancels_its_job(cli: Cli) -> None:
    with cli.start("run", "--name", "enough", "--", "sleep {}; echo done", ":::", "0", *20 * ["0.5"]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
    assert process.returncode == 0
    [job] = cli.json("job", "list", "--name", "enough")
    assert job["state"] == "CANCELLED"
    assert err == f"antfarm: job {job['job']} was cancelled (`antfarm job retry {job['job']}` repeats it)\n"


def test_a_run_whose_input_breaks_cancels_its_job(cli: Cli) -> None:
    cli.environment["PYTHONIOENCODING"] = "utf-8:strict"
    process = cli.start("run", "--name", "torn", "--", "echo", "{}")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("a\n")
    process.stdin.flush()
    assert process.stdout.readline() == "a\n"
    process.stdin.buffer.write(b"\xff\n")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    [job] = cli.json("job", "list", "--name", "torn")
    assert job["state"] == "CANCELLED"
    assert err.splitlines() == [
        "antfarm: standard input: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        f"antfarm: job {job['job']} was cancelled (`antfarm job retry {job['job']}` repeats it)",
    ]


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, once; standard input stays open, and the command ends with 4."""
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=30) == 4
    finally:
        process.kill()


def test_an_interrupted_run_ends_while_standard_input_is_open(cli: Cli) -> None:
    process = cli.start("run", "--job-id", "open-input", "--", "echo", "{}")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write("first\n")
    process.stdin.flush()
    assert process.stdout.readline() == "first\n"
    interrupt(process)
    said = "job open-input was cancelled (`antfarm job retry open-input` repeats it)"
    assert process.stderr.read() == f"antfarm: interrupted; {said}\n"
    process.communicate()


def test_a_run_again_under_its_job_id_names_outcomes_when_their_arguments_are_read(cli: Cli) -> None:
    words = ("run", "--job-id", "run-again", "-k", "--tag", "--", "echo {}; test {} != c")
    out, err = cli(*words, input="a\nb\nc\n", code=1)
    assert out == "a\ta\nb\tb\n"
    process = cli.start(*words)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("a\n")
    process.stdin.flush()
    assert process.stdout.readline() == "a\ta\n"  # the others have ended too, and wait
    assert process.communicate("b\nc\n", timeout=30) == ("b\tb\n", err)
    assert process.returncode == 1


def test_a_run_again_with_less_input_names_the_other_tasks_by_their_ids(cli: Cli) -> None:
    words = ("run", "--job-id", "run-less", "-k", "--tag", "--", "echo {}; test {} != c")
    _, err = cli(*words, input="a\nb\nc\n", code=1)
    process = cli.start(*words)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("a\n")
    process.stdin.flush()
    assert process.stdout.readline() == "a\ta\n"
    out, again = process.communicate(timeout=30)
    assert (out, process.returncode) == ("run-less/1\tb\n", 2)
    conflict = "antfarm: job run-less has 3 tasks, not 1: it was submitted with more input; choose another job id\n"
    assert again == err.replace("antfarm run: c: ", "antfarm run: run-less/2: ") + conflict


@pytest.mark.parametrize(
    "words",
    [
        "run -- true {}",
        "run --dry-run -- true {}",
        "run -- true {} :::: -",
        "submit client_app.length --stdin",
        "submit client_app.length --each-line - --dry-run",
        "submit client_app.length --from-json -",
        "blob put cli/never -",
    ],
)
def test_ctrl_c_ends_a_command_that_waits_for_standard_input(cli: Cli, words: str) -> None:
    process = cli.start(*words.split())
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("x" * 250_000)  # more than a pipe holds: when all is written, it is being read
    process.stdin.flush()
    interrupt(process)
    assert process.stderr.read() == "antfarm: interrupted\n"
    process.communicate()


# ---- submit and job -------------------------------------------------------------------------------------------------


def test_submit_makes_calls_of_ranges(cli: Cli) -> None:
    out, _ = cli("submit", "client_app.square", "--range", "x=3..5", "--name", "ranged", "--wait", "--output", "quiet")
    [job_id] = out.split()
    out, _ = cli("job", "results", job_id)
    assert [json.loads(line)["value"] for line in out.splitlines()] == [9, 16, 25]
    out, err = cli("submit", "x", "--range", "day=2021-02-27..2021-03-01", "--range", "n=1..2", "--dry-run")
    assert err == "6 tasks\n"
    calls = [json.loads(line)["kwargs"] for line in out.splitlines()]
    assert len(calls) == 6
    assert calls[0] == {"day": {"$date": "2021-02-27"}, "n": 1}
    assert calls[-1] == {"day": {"$date": "2021-03-01"}, "n": 2}


def test_a_submission_that_is_interrupted_says_what_became_of_its_job(cli: Cli) -> None:
    process = cli.start("submit", "client_app.square", "--range", "x=1..9000000", "--job-id", "in-part")
    wait_until(lambda: any(job["job"] == "in-part" for job in cli.json("job", "list")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 4
    found = re.fullmatch(
        r"antfarm: interrupted; job in-part stays open with [0-9,]+ tasks or more: submit all of it again with --job-id in-part "
        r"\(in Python job_id=\), or `antfarm job cancel in-part`\n",
        err,
    )
    assert found is not None, err
    cli("job", "cancel", "in-part")


def test_a_submission_whose_input_breaks_says_what_became_of_its_job(cli: Cli) -> None:
    (cli.home / "calls.jsonl").write_text("[1]\n" * 9000 + "[1\n")
    _, err = cli("submit", "nobody.knows", "--from-json", "calls.jsonl", "--job-id", "broken", code=2)
    found = re.fullmatch(
        r"antfarm: calls\.jsonl: line 9001 is not JSON: .*\n"
        r"antfarm: job broken stays open with [0-9,]+ tasks or more: submit all of it again with --job-id broken "
        r"\(in Python job_id=\), or `antfarm job cancel broken`\n",
        err,
    )
    assert found is not None, err
    assert cli.json("job", "show", "broken")[0]["state"] == "OPEN"
    cli("job", "cancel", "broken")
    (cli.home / "calls.jsonl").write_text("[1\n")
    _, err = cli("submit", "nobody.knows", "--from-json", "calls.jsonl", code=2)
    assert err.count("\n") == 1  # nothing was sent


def test_submit_takes_lines_and_json(cli: Cli) -> None:
    (cli.home / "calls.json").write_text('[{"x": 1, "y": 2}, [3], "4"]')
    cli("submit", "client_app.add", "--from-json", "calls.json", "--job-id", "from-json", "--wait", code=1)
    rows = [json.loads(line) for line in cli("job", "results", "from-json", code=1)[0].splitlines()]
    assert [row.get("value") for row in rows] == [3, 3, None]
    assert "can only concatenate str" in rows[2]["error"]
    cli("submit", "client_app.length", "--stdin", "--job-id", "from-lines", "--wait", input="a\nbcd\n")
    _, err = cli("submit", "client_app.length", "--stdin", "--job-id", "from-lines", code=2, input="a\n")
    assert "job from-lines has 2 tasks, not 1: " in err
    assert [json.loads(line)["value"] for line in cli("job", "results", "from-lines")[0].splitlines()] == [1, 3]


def test_a_type_submitted_by_name_has_the_options_that_are_given_or_read_from_its_code(cli: Cli) -> None:
    cli("submit", "client_app.third_time", "--wait", code=1)
    cli("submit", "client_app.third_time", "--app", APP, "--wait")
    cli("submit", "client_app.third_time", "--retries", "2", "--retry-pause", "10ms", "--wait")
    cli(
        "submit",
        "client_app.square",
        "--arg",
        "x=1",
        "--resource",
        "gpu=1",
        "--job-id",
        "no-gpu",
        "--queue-timeout",
        "500ms",
    )
    cli("job", "wait", "no-gpu", code=1)
    assert cli.json("job", "show", "no-gpu")[0]["counts"] == {"EXPIRED": 1}
    _, err = cli("run", "--max-failures", "-1", "--", "echo", "{}", ":::", "a", code=2)
    assert err.startswith("antfarm: --max-failures -1: give 0 or more")


def test_submit_says_what_is_wrong_with_its_words(cli: Cli) -> None:
    for words, said in (
        (("--range", "day=2021-02-30..2021-03-01"), "neither days (2021-01-31) nor whole numbers"),
        (("--range", "n=5..1"), "its end lies before its beginning"),
        (("--range", "n"), "write NAME=FROM..TO"),
        (("--arg", "x"), "write NAME=VALUE"),
        (("--stdin", "--range", "n=1..2"), "give only one of"),
        (("--from-json", "missing.json"), "missing.json: No such file"),
        (("--timeout", "soon"), "is not a length of time"),
        (("--priority", "99"), "priority"),
    ):
        _, err = cli("submit", "client_app.square", *words, code=2)
        assert said in err
        assert err.count("\n") == 1


def test_jobs_are_listed_shown_and_waited_for(cli: Cli) -> None:
    cli("submit", "client_app.square", "--range", "x=1..3", "--name", "shown", "--wait")
    out, _ = cli("job", "list", "--limit", "3")
    head, first = out.splitlines()[:2]
    assert head.split() == ["JOB", "NAME", "TYPE", "STATE", "TASKS", "DONE", "FAILED", "AGE", "TOOK"]
    assert first.split()[1:6] == ["shown", "client_app.square", "SUCCEEDED", "3", "3"]
    out, _ = cli("job", "show", "shown")
    assert re.search(r"^counts\s+SUCCEEDED=3$", out, re.M)
    _, err = cli("job", "wait", "shown", "--progress")
    assert re.fullmatch(r"succeeded: 3/3 done in \S+\n", err)
    _, err = cli("job", "watch", "shown")
    assert err.startswith("succeeded: 3/3 done")
    assert [row["job"] for row in cli.json("job", "list", "--limit", "1")] == [cli.json("job", "show")[0]["job"]]


def test_waiting_too_long_ends_with_5_and_cancelled_with_4(cli: Cli) -> None:
    cli("submit", "client_app.wait_for", "--arg", f"path={cli.home / 'never'}", "--job-id", "never")
    _, err = cli("job", "wait", "never", "--timeout", "0.2s", code=5)
    assert err == "antfarm: job never has not ended within 0.2s\n"
    cli("job", "pause", "never")
    cli("job", "resume", "never")
    out, _ = cli("job", "cancel", "never", "--cause", "tired of it")
    assert "CANCELLED" in out
    out, err = cli("job", "wait", "never", code=4)
    assert " CANCELLED " in out
    assert err == "antfarm: job never was cancelled: tired of it; `antfarm job explain never`\n"
    assert cli.json("job", "show", "never")[0]["cause"] == "tired of it"


def test_a_type_that_no_worker_offers_is_told_at_submission_and_taken(cli: Cli) -> None:
    out, err = cli("submit", "nosuch.type", "--job-id", "unoffered", "--output", "quiet")
    assert out == "unoffered\n"
    assert err.startswith(f"no worker of the farm at {cli.farm.address} offers the task type 'nosuch.type' yet; ")
    assert err.count("\n") == 1
    cli("job", "cancel", "unoffered")
    assert cli("submit", "client_app.square", "--arg", "x=1")[1] == ""


def test_a_wait_says_how_its_job_ended_and_why(cli: Cli) -> None:
    out, err = cli("submit", "client_app.square", "--arg", "y=1", "--job-id", "wrong", "--wait", code=1)
    assert re.search(r"^wrong +client_app.square +FAILED +1 +1 +1 ", out, re.MULTILINE)
    assert out.count("\n") == 2
    said = r"antfarm: 1 of 1 tasks failed: TypeError: .*'y'.*; `antfarm job explain wrong`\n"
    assert re.fullmatch(rf"antfarm: job wrong submitted\n{said}", err)
    waited, err = cli("job", "wait", "wrong", code=1)
    assert waited.split()[10:13] == out.split()[10:13]
    assert re.fullmatch(said, err)
    _, err = cli("job", "watch", "wrong", code=1)
    assert re.fullmatch(rf"failed: 1/1 done, 1 failed in \S+\n{said}", err)
    out, err = cli("submit", "client_app.square", "--arg", "x=1", "--wait", "--output", "json")
    assert [row["state"] for row in json.loads(out)] == ["SUCCEEDED"]
    assert err == ""
    words = ("--resource", "gpu=1", "--queue-timeout", "100ms", "--wait", "--output", "jsonl")
    out, err = cli("submit", "client_app.square", "--arg", "x=1", *words, code=1)
    assert json.loads(out)["state"] == "FAILED"
    assert err.startswith("antfarm: 1 of 1 tasks failed: ")


def test_failed_jobs_are_retried_and_purged(cli: Cli) -> None:
    cli("submit", "client_app.fail_odd", "--range", "x=1..4", "--job-id", "odd", "--wait", code=1)
    out, err = cli("job", "retry", "odd", "--failed", "--wait", "--output", "quiet", code=1)
    assert "failed: 2/2 done, 2 failed" in err
    cli("job", "purge", "odd", out.split()[0])
    _, err = cli("job", "show", "odd", code=2)
    assert err == "antfarm: no job has the id or name 'odd'\n"


# ---- task, worker, blob ---------------------------------------------------------------------------------------------


def test_tasks_are_listed_and_their_story_is_told(cli: Cli) -> None:
    cli("submit", "client_app.fail_odd", "--range", "x=0..3", "--job-id", "story", "--wait", code=1)
    rows = cli.json("task", "list", "--job", "story", "--state", "FAILED")
    assert [(row["task"], row["failure"]) for row in rows] == [
        ("story/1", "ValueError: odd 1"),
        ("story/3", "ValueError: odd 3"),
    ]
    assert {row["worker"] for row in rows} <= {row["worker"] for row in cli.json("worker", "list")}
    out, _ = cli("task", "show", "story/1")
    assert "ValueError: odd 1" in out
    assert 'raise ValueError(f"odd {x}")' in out
    _, err = cli("task", "list", "--state", "SAD", code=2)
    assert "SAD is no state of a task" in err
    _, err = cli("task", "show", "story/99", code=2)
    assert "99" in err
    _, err = cli("task", "show", "story", code=2)
    assert "give JOB/INDEX" in err


def test_logs_are_shown_with_hostile_characters_escaped(cli: Cli) -> None:
    cli("submit", "client_app.say", "--arg", "text=\x1b[31mred\u202e", "--job-id", "talk", "--wait")
    out, _ = cli("task", "logs", "talk/0")
    assert "printed \\x1b[31mred\\u202e\n" in out
    assert "logged \\x1b[31mred" in out
    out, _ = cli("job", "list", "--name", "nobody\x1b")
    assert out == ""


def test_logs_are_followed_until_the_task_ends(cli: Cli) -> None:
    process = cli.start(
        "run",
        "--name",
        "talker",
        "--",
        "sh",
        "-c",
        "echo first; while [ ! -e {} ]; do sleep 0.05; done; echo last",
        ":::",
        str(cli.home / "go"),
    )
    wait_until(lambda: cli("job", "list", "--name", "talker")[0])
    follower = cli.start("task", "logs", "-f", "talker/0")
    assert follower.stdout is not None
    assert follower.stdout.readline() == "first\n"
    (cli.home / "go").touch()
    assert follower.communicate(timeout=30)[0] == "last\n"
    assert follower.returncode == 0
    process.communicate(timeout=30)


def test_one_task_is_cancelled(cli: Cli) -> None:
    cli("submit", "client_app.wait_for", "--arg", f"path={cli.home / 'x'}", "--job-id", "single")
    out, _ = cli("task", "cancel", "single/0", "--cause", "not that one")
    assert re.search(r"^single/0 +CANCELLED .*cancelled: not that one$", out, re.MULTILINE)
    _, err = cli("job", "wait", "single", code=1)
    assert err.startswith("antfarm: 1 of 1 tasks were cancelled: ")


def test_workers_are_listed_drained_and_taken_back(cli: Cli, programs: LocalFarm) -> None:
    programs.start_worker("leaver", slots=1, app=[APP], options=["--resource", "gpu=2", "--resource", "disk=2.5"])
    rows = {row["worker"]: row for row in cli.json("worker", "list")}
    assert rows["worker-1"]["state"] == "READY"
    assert rows["worker-1"]["slots"] == 2
    assert "client_app.square" in str(cli.json("worker", "show", "worker-1")[0]["task types"])
    resources = cli.json("worker", "show", "leaver")[0]["resources"]
    assert isinstance(resources, dict)
    assert [(name, resources[name]) for name in ("cpu", "disk", "gpu")] == [("cpu", 1), ("disk", 2.5), ("gpu", 2)]
    assert re.search(r"^resources +cpu=1, disk=2.5, gpu=2", cli("worker", "show", "leaver")[0], re.MULTILINE)
    cli("worker", "drain", "leaver", "--limit", "5s")
    wait_until(lambda: not programs.program("leaver").running)
    assert "leaver" not in {row["worker"] for row in cli.json("worker", "list")}
    _, err = cli("worker", "show", "nobody", code=2)
    assert "nobody" in err


def test_blobs_are_put_read_listed_and_removed(cli: Cli) -> None:
    (cli.home / "in").write_bytes(b"\x00content")
    cli("blob", "put", "cli/a", "in")
    assert [row["key"] for row in cli.json("blob", "list", "cli/")] == ["cli/a"]
    cli("blob", "get", "cli/a", "out")
    assert (cli.home / "out").read_bytes() == b"\x00content"
    assert cli.json("blob", "stat", "cli/a")[0]["size_bytes"] == 8
    cli("blob", "put", "cli/b", "-", input="piped")
    assert cli("blob", "get", "cli/b")[0] == "piped"
    cli("blob", "rm", "cli/a", "cli/b")
    assert cli.json("blob", "list", "cli/") == []
    for words, said in (
        (("get", "cli/a"), "cli/a"),
        (("put", "../x", "in"), "is not allowed"),
        (("put", "x", "nowhere"), "nowhere: no such file"),
        (("get", "cli/none", "/nonexistent/x"), ""),
        (("get", "--storage", "127.0.0.1:9", "key", "."), "'.' is a directory: name the file that is to be written"),
    ):
        _, err = cli("blob", *words, code=2)
        assert said in err
        assert err.count("\n") == 1


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_an_unreachable_farm_ends_with_3_in_one_line(cli: Cli) -> None:
    _, err = cli("-c", "127.0.0.1:9", "job", "list", code=3)
    assert re.fullmatch(r"antfarm: no farm answers at 127\.0\.0\.1:9 \(connection refused\): .*\n", err)
    _, err = cli("job", "list", "-c", "nonsense", code=2)
    assert err == "antfarm: address 'nonsense' is not HOST:PORT, e.g. 127.0.0.1:50051\n"


def test_versions_are_told(cli: Cli) -> None:
    assert cli("--version")[0] == f"antfarm {af.__version__}\n"
    assert re.search(r"^protocol\s+1\.", cli("version", "--server")[0], re.M)


def test_a_reader_that_has_enough_is_no_error(cli: Cli) -> None:
    cli("submit", "client_app.square", "--range", "x=1..20000", "--job-id", "many", "--wait")
    with cli.start("job", "results", "many") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == '{"index": 0, "state": "SUCCEEDED", "value": 1}\n'
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_jobs_and_tasks_are_explained_in_words(cli: Cli) -> None:
    cli("submit", "client_app.fail_odd", "--range", "x=1..2", "--job-id", "told", "--wait", code=1)
    out, err = cli("task", "explain", "told/0")
    assert re.sub(r"submitted \S+ ago|on \S+, after \S+\)", "*", out) == (
        "Task told/0 (client_app.fail_odd) is FAILED; it was *.\n"
        "It failed: ValueError: odd 1 (attempt 1 *\n"
        "    why:  Its type has one attempt, the default: an exception or a timeout ends the task.\n"
        "    help: `antfarm task show told/0` has the traceback. If another try can help, `antfarm job retry told`,"
        " or give the type retries= and submit it anew.\n"
    )
    assert err == ""
    out, _ = cli("job", "explain", "told")
    assert out == (
        "Job told (client_app.fail_odd) is FAILED: 2 of 2 tasks ended, 1 of them without success.\n"
        "1 task FAILED: ValueError: odd 1\n"
        "    help: antfarm task explain told/0\n"
    )
    (row,) = cli.json("job", "explain", "told")
    assert row["name"] == "told"
    assert row["findings"][1] == {  # type: ignore[index]
        "what": "1 task FAILED: ValueError: odd 1",
        "why": "",
        "help": "antfarm task explain told/0",
    }
    assert cli("job", "explain", "told", "--output", "quiet")[0].splitlines()[1] == "1 task FAILED: ValueError: odd 1"
    assert cli("task", "explain", "told/9", code=2)[1] == (
        "antfarm: job told has 2 tasks, none of index 9: `antfarm task list` shows them\n"
    )


def test_why_a_task_waits_and_how_it_went_is_told(cli: Cli) -> None:
    worker = str(cli.json("worker", "list")[0]["worker"])
    cli("submit", "client_app.nobody_has_it", "--arg", "x=1", "--job-id", "alien")
    out, _ = cli("task", "explain", "alien/0")
    assert re.sub(r"submitted \S+ ago", "*", out) == (
        "Task alien/0 (client_app.nobody_has_it) is QUEUED; it was *.\n"
        f"The only worker, {worker}, cannot run it.\n"
        f"    why:  {worker} does not offer task type client_app.nobody_has_it.\n"
        "    help: Start a worker with --app MODULE_OR_FILE that has the task type, or submit the job with other needs.\n"
    )
    cli("job", "cancel", "alien")

    with af.connect(cli.farm.address) as farm:
        job = farm.submit(client_app.fail_patiently).job
        task = f"{job.job_id}/0"
        wait_until(lambda: "is WAITING" in cli("task", "explain", task)[0])
        out, _ = cli("task", "explain", task)
        assert re.sub(r"(in|after) [0-9.hms]+[.]", "*", out).splitlines()[1:] == [
            f"Attempt 1 failed on {worker}: OSError: not yet",
            "    why:  Counted as failure 1 of 3 attempts; again *",
            "It failed and is tried again *",
            "    why:  OSError: not yet (1 of 3 attempts used)",
            f"    help: Wait; `antfarm task show {task}` has the traceback.",
        ]
        job.cancel()

    for what in (("job", "explain", "nosuch"), ("task", "explain", "nosuch/0")):
        assert cli(*what, code=2) == ("", "antfarm: no job has the id or name 'nosuch'\n")


def test_a_task_that_its_dependency_ended_names_it(cli: Cli) -> None:
    with af.connect(cli.farm.address) as farm:
        first = farm.submit(client_app.fail_odd, 1)
        second = farm.submit(client_app.square, first)
        second.job.wait(60)
        out, _ = cli("task", "explain", f"{second.job.job_id}/0")
        assert out.splitlines()[1:5] == [
            f"It failed: the task of job {first.job.job_id} that it needs did not succeed",
            "    why:  A task whose result it needs did not succeed.",
            "    help: Mend that one, and submit both anew.",
            f"What failed first is task {first.job.job_id}/0:",
        ]
        assert out.splitlines()[5].startswith("It failed: ValueError: odd 1 (attempt 1 on ")


def test_the_library_explains_in_the_words_of_the_command_line(cli: Cli) -> None:
    with af.connect(cli.farm.address) as farm:
        job = farm.submit(client_app.third_time).job
        job.wait(60)
        assert f"{job.explain()}\n" == cli("job", "explain", job.job_id)[0]
        words = str(job[0].explain())
        assert [line.partition(" on ")[0] for line in words.splitlines() if line.startswith("Attempt")] == [
            "Attempt 1 failed",
            "Attempt 2 failed",
        ]
        assert words.splitlines()[-1].startswith("It succeeded: attempt 3 on ")


def test_up_serves_until_ctrl_c_and_revives_what_dies(cli: Cli) -> None:
    words = (
        "up",
        "--port",
        "0",
        "--storage-port",
        "0",
        "--workers",
        "2",
        "--slots",
        "1",
        "--app",
        APP,
        "--state",
        "up",
    )
    process = cli.start(*words, connect=False)
    assert process.stdout is not None
    assert process.stderr is not None
    found = re.match(r"farm ready on (\S+) \(storage \S+, 2 workers\)\n", process.stdout.readline())
    assert found is not None, process.stderr.read()
    address = found.group(1)
    cli("-c", address, "submit", "client_app.square", "--range", "x=1..9", "--wait")
    [worker] = [pid for pid, line in _processes() if f"--connect {address}" in line and "--worker-id worker-2" in line]
    os.kill(worker, signal.SIGKILL)
    assert "worker-2 died; starting it again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert not [line for line in _processes() if f"--connect {address}" in line[1]]


def test_a_second_ctrl_c_ends_up_at_once(cli: Cli) -> None:
    process = cli.start("up", "--port", "0", "--storage-port", "0", "--slots", "1", "--state", "up3", connect=False)
    assert process.stdout is not None
    assert process.stderr is not None
    found = re.match(r"farm ready on (\S+) ", process.stdout.readline())
    assert found is not None, process.stderr.read()
    started = cli.home / "started"
    cli("-c", found.group(1), "submit", "antfarm.command", "--arg", f'argv=["sh", "-c", "touch {started}; sleep 600"]')
    wait_until(started.exists)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("stopping; running tasks may finish")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=15)
    assert not [line for _, line in _processes() if f"--connect {found.group(1)}" in line]


def _processes() -> list[tuple[int, str]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append((int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")))
        except OSError:
            continue
    return found


def test_up_that_cannot_start_says_why_in_one_line_and_nothing_else(cli: Cli, programs: LocalFarm) -> None:
    (cli.home / "broken.py").write_text("import nothing_of_that_name")
    taken = programs.address.rpartition(":")[2]
    free = ("--port", "0", "--storage-port", "0")
    for words, said in (
        (("--port", "51970", "--storage-port", "51970"), "--port and --storage-port are the same, 51970"),
        (("--port", "-1"), "--port -1: not a port"),
        (("--storage-port", "70000"), "--storage-port 70000: not a port"),
        (("--workers", "-1", *free), "--workers -1: give 0 or more"),
        (("--advertise", "0.0.0.0", *free), "--advertise 0.0.0.0: give this machine's name or one address of it"),
        (("--slots", "-2", *free), "--slots -2: give 1 to 4,096"),
        (("--port", taken, "--storage-port", "0"), "choose another --port"),
        (("--port", "0", "--storage-port", taken), "choose another --storage-port"),
        (("--host", "0.0.0.0"), "reachable from other machines"),
        (("--app", "broken.py", *free), "nothing_of_that_name"),
    ):
        _, err = cli("up", "--state", "up2", *words, code=2, connect=False)
        assert said in err
        assert err.startswith("antfarm: ")
        assert err.count("\n") == 1, err


@pytest.mark.parametrize("advertised", ["127.0.0.2", ""])
def test_up_on_every_address_tells_one_that_others_can_reach(cli: Cli, advertised: str) -> None:
    words = ("--advertise", advertised) if advertised else ()
    words = ("--host", "0.0.0.0", "--insecure", "--slots", "1", "--app", APP, "--state", "up5", *words)
    process = cli.start("up", "--port", "0", "--storage-port", "0", *words, connect=False)
    assert process.stdout is not None
    assert process.stderr is not None
    found = re.match(r"farm ready on (\S+) \(storage (\S+), 1 worker\)\n", process.stdout.readline())
    assert found is not None, process.stderr.read()
    address, storage = found.groups()
    assert process.stdout.readline().endswith(f"  export ANTFARM_ADDRESS={address}\n")
    host = advertised or own_address()
    assert (address.rpartition(":")[0], storage.rpartition(":")[0]) == (host, host)
    assert process.stdout.readline().endswith(f" --connect {address} --app MODULE_OR_FILE\n")
    with af.connect(address) as farm:
        assert farm.submit(client_app.repeat, "ab", 50_000).result(30) == "ab" * 50_000  # by Storage
        assert farm.aio.connection.storage_address == storage
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_a_second_up_in_one_directory_is_told_where_the_first_serves(cli: Cli) -> None:
    words = ("up", "--port", "0", "--storage-port", "0", "--workers", "0", "--state", "up4")
    first = cli.start(*words, connect=False)
    assert first.stdout is not None
    found = re.match(r"farm ready on (\S+) ", first.stdout.readline())
    assert found is not None
    _, err = cli(*words, code=2, connect=False)
    assert err == f"antfarm: a farm runs here already ({found.group(1)}): use it, or give --state DIR\n"
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=30)
    assert first.returncode == 0
    assert err == "stopping; running tasks may finish (Ctrl-C again: at once)\n"
    again = cli.start(*words, connect=False)  # it is free again
    assert again.stdout is not None
    assert again.stdout.readline().startswith("farm ready on")
    again.send_signal(signal.SIGKILL)
    again.communicate(timeout=30)
    wait_until(lambda: not [line for _, line in _processes() if f"{cli.home}/up4" in line or "up4/orch" in line])
