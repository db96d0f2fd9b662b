"""Functions become tasks under names that both ends know; nothing else can be run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import pytest

import antfarm as af
from antfarm import apps, model, payload
from antfarm import task as decorator
from antfarm.errors import DataLoss, DiskFull, InvalidArgument, PermanentError, Unavailable
from antfarm.task import Options, Task, _registry


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    """What a test registers or imports is gone afterwards."""
    before, modules, path, loaded = dict(_registry), set(sys.modules), list(sys.path), dict(apps._loaded)
    yield
    _registry.clear()
    _registry.update(before)
    apps._loaded.clear()
    apps._loaded.update(loaded)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("app_"):
            del sys.modules[name]


def double(x: int) -> int:
    """Twice as much."""
    return 2 * x


def test_the_bare_decorator_names_by_module_and_keeps_the_function() -> None:
    made = decorator(double)
    assert (made.name, made.version, made.function, made.is_async) == (f"{__name__}.double", "", double, False)
    assert made(4) == 8
    assert made.__doc__ == "Twice as much."
    assert af.registry()[made.name] is made


def test_options_reach_the_template() -> None:
    made = af.task(
        name="demo.fetch",
        version="3",
        retries=af.Retry(max_attempts=5, on=(OSError,), backoff="2s", backoff_max="1m"),
        timeouts=af.Timeouts(run="10m", total=3600),
        resources={"cpu": 2},
        labels={"disk": "ssd"},
        limit=af.Limit("web", 4),
        at_most_once=True,
        idempotent=True,
    )(double)
    second = model.SECOND_NS
    assert made.template(b"{}") == model.TaskTemplate(
        type="demo.fetch",
        version="3",
        retry=model.RetryPolicy(max_attempts=5, backoff_initial_ns=2 * second, backoff_max_ns=60 * second),
        timeouts=model.Timeouts(run_ns=600 * second, total_ns=3600 * second),
        resources={"cpu": 2},
        labels={"disk": "ssd"},
        limit=model.ConcurrencyLimit(name="web", max_active=4),
        at_most_once=True,
        idempotent=True,
        common_payload=b"{}",
    )


def test_without_options_the_template_holds_the_defaults() -> None:
    assert Task(double).template() == model.TaskTemplate(type=f"{__name__}.double")


def test_changed_options_leave_the_registered_task_alone() -> None:
    made = decorator(double)
    changed = made.options(retries=af.Retry(max_attempts=9))
    assert changed.template().retry.max_attempts == 9
    assert af.registry()[made.name].template().retry.max_attempts == 1
    with pytest.raises(InvalidArgument, match="there is no option colour; there are: version, retries"):
        made.options(colour="red")


def test_retry_on_decides_what_is_permanent() -> None:
    made = Task(double, options=Options(retries=af.Retry(on=(OSError,))))
    assert not made.is_permanent(ConnectionError())
    assert made.is_permanent(ValueError())
    assert not Task(double).is_permanent(ValueError())
    assert Task(double, options=Options(retries=af.Retry())).is_permanent(PermanentError("no"))


def test_retry_on_says_nothing_of_the_weather() -> None:
    made = Task(double, options=Options(retries=af.Retry(max_attempts=5, on=(OSError,))))
    for error in (Unavailable("Storage is away"), DiskFull("no room"), DataLoss("torn")):
        assert not made.is_permanent(error)


def test_a_task_of_a_task_has_the_name_and_the_options_that_are_given_anew() -> None:
    async def wait(ctx: af.Context) -> None: ...

    first = af.task(name="demo.first", retries=2, version="1")(wait)
    second = af.task(name="demo.second", version="2")(first)
    assert (second.name, second.version, second.options_set.retries) == ("demo.second", "2", None)
    assert (second.function, second.is_async, second.context_parameter) == (wait, True, "ctx")
    assert (first.name, first.version) == ("demo.first", "1")
    assert Task(first).template() == first.template()


def test_attributes_of_a_function_do_not_pass_for_the_tasks_own() -> None:
    def named(x: int) -> int:
        return x

    named.name, named.is_async = "another", True  # type: ignore[attr-defined]
    made = Task(named, "demo.named")
    assert (made.name, made.is_async) == ("demo.named", False)


def test_a_name_belongs_to_one_function() -> None:
    af.task(name="demo.one")(double)
    af.task(name="demo.one")(double)  # a module that is loaded again

    def other() -> None: ...

    with pytest.raises(InvalidArgument, match=r"two functions are named demo\.one"):
        af.task(name="demo.one")(other)


def test_a_name_that_cannot_travel_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="cannot name a task"):
        Task(lambda: 1)
    with pytest.raises(InvalidArgument, match="cannot name a task"):
        Task(double, "x" * 129)


def test_the_context_parameter_is_found() -> None:
    def annotated(x: int, surroundings: af.Context) -> None: ...
    def named(ctx) -> None: ...  # type: ignore[no-untyped-def]
    def none(x: int) -> None: ...

    assert [Task(f, "demo.f").context_parameter for f in (annotated, named, none)] == ["surroundings", "ctx", ""]


def test_async_functions_are_known() -> None:
    async def run() -> None: ...

    assert Task(run, "demo.run").is_async


def test_a_task_can_be_pickled_by_value() -> None:
    back = cloudpickle.loads(cloudpickle.dumps(Task(lambda x: x + 1, "demo.plus")))
    assert (back.name, back(1)) == ("demo.plus", 2)


APP = """
import antfarm as af
from os.path import join

@af.task(name="demo.decorated")
def decorated(): return 1

def plain(x): return x
def _hidden(): return 1
def main(): return 1
class Thing:
    def method(self): return 1
def generate(): yield 1
"""


def test_an_app_file_offers_its_own_public_functions_only(tmp_path: Path) -> None:
    (tmp_path / "app_one.py").write_text(APP)
    before = set(af.registry())
    found = set(af.load_apps([str(tmp_path / "app_one.py")], entry_points=False)) - before
    assert found == {"demo.decorated", "app_one.plain"}
    assert af.registry()["app_one.plain"](3) == 3


def test_an_app_module_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app_two.py").write_text("def plain(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "app_two.plain" in af.load_apps(["app_two"], entry_points=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("import antfarm_no_such_module", "No module named"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_named_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "app_three.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidArgument, match="app_three") as caught:
        af.load_apps([str(path)], entry_points=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "app_three" not in sys.modules


def test_a_file_cannot_take_the_place_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(InvalidArgument, match="a module named json exists already"):
        af.load_apps([str(tmp_path / "json.py")], entry_points=False)


def test_a_script_and_a_worker_that_loads_it_use_the_same_names(tmp_path: Path) -> None:
    script = tmp_path / "app_squares.py"
    script.write_text(
        textwrap.dedent(
            """
            import dataclasses
            import antfarm as af
            from antfarm import payload

            @dataclasses.dataclass
            class Box:
                side: int

            @af.task
            def area(box): return box.side ** 2

            if __name__ == "__main__":
                print(area.name)
                print(payload.encode_result(Box(3)).decode())
                assert payload.decode_result(payload.encode_result(Box(3))) == Box(3)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(af.__file__).parents[1])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env=environment)
    shown = done.stdout.split("\n")
    assert shown[0] == "app_squares.area"
    known = af.load_apps([str(script)], entry_points=False)
    assert known["app_squares.area"](payload.decode_result(shown[1].encode())) == 9


def test_importing_the_package_loads_no_grpc() -> None:
    code = "import sys, antfarm; assert 'grpc' not in sys.modules and 'asyncio' not in sys.modules, 'too much'"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what is refused at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"retries": "3"},
        {"retries": -1},
        {"retries": True},
        {"retries": 1_000_000},
        {"timeouts": "10s"},
        {"limit": 3},
        {"resources": {"cpu": "two"}},
        {"resources": {"cpu": -1}},
        {"resources": {"cpu": float("nan")}},
        {"resources": {"cpu": True}},
        {"resources": {1: 1}},
        {"resources": "cpu"},
        {"labels": {"a": 1}},
        {"labels": {1: "a"}},
        {"labels": ["a"]},
        {"version": 3},
        {"version": "x" * 300},
        {"version": "\udc80"},
        {"labels": {"a": "\udc80"}},
        {"resources": {"\udc80": 1}},
        {"resources": {"cpu": 10**400}},
        {"at_most_once": "yes"},
        {"fence_late_results": 1},
        {"idempotent": None},
        {"colour": 1},
    ],
    ids=ascii,
)
def test_an_option_of_another_form_is_refused_by_its_name_where_it_is_given(options: dict[str, object]) -> None:
    [name] = options
    with pytest.raises(InvalidArgument, match=name) as caught:
        af.task(**options)(double)  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidArgument, match=name):
        decorator(name="demo.refused")(double).options(**options)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: af.Retry(max_attempts=0), "max_attempts"),
        (lambda: af.Retry(max_attempts=2.5), "max_attempts"),  # type: ignore[arg-type]
        (lambda: af.Retry(backoff="soon"), "backoff"),
        (lambda: af.Retry(backoff_max=-1), "backoff_max"),
        (lambda: af.Retry(on="OSError"), "on="),  # type: ignore[arg-type]
        (lambda: af.Retry(on=(OSError, 3)), "on="),  # type: ignore[arg-type]
        (lambda: af.Timeouts(run="soon"), "run"),
        (lambda: af.Timeouts(progress=0), "progress"),
        (lambda: af.Timeouts(queue=[1]), "queue"),  # type: ignore[arg-type]
        (lambda: af.Timeouts(total=float("nan")), "total"),
        (lambda: af.Limit("a", 1.5), "max_active"),  # type: ignore[arg-type]
        (lambda: af.Limit("a", 0), "max_active"),
        (lambda: af.Limit("", 1), "name"),
        (lambda: af.Limit("\udc80", 1), "name"),
        (lambda: af.Limit(3, 1), "name"),  # type: ignore[arg-type]
        (lambda: af.task(name=3)(double), "name"),  # type: ignore[call-overload]
        (lambda: af.task("demo.double"), "name="),  # type: ignore[arg-type]
    ],
)
def test_a_part_of_an_option_of_another_form_is_refused_by_its_name(make: Callable[[], object], word: str) -> None:
    with pytest.raises(InvalidArgument, match=word):
        make()


def test_a_number_of_retries_and_a_single_exception_mean_what_they_say() -> None:
    made = af.task(name="demo.often", retries=3)(double)
    assert made.template().retry == model.RetryPolicy(max_attempts=4)
    assert made.options(retries=0).template().retry == model.RetryPolicy()
    assert made.options(retries=af.Retry(on=OSError)).is_permanent(ValueError())
    assert not made.options(retries=af.Retry(on=OSError)).is_permanent(FileNotFoundError())


def test_a_number_of_retries_leaves_pauses_and_exceptions_as_they_are() -> None:
    made = Task(double, options=Options(retries=af.Retry(max_attempts=2, on=OSError, backoff=7)))
    assert made.options(retries=9).options_set.retries == af.Retry(max_attempts=10, on=OSError, backoff=7)
    assert made.options(retries=0).options_set.retries is None
    with pytest.raises(InvalidArgument, match="retries=-1"):
        made.options(retries=-1)
