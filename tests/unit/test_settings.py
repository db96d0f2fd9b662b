"""Settings come from defaults, file, environment and flags, later ones win, and a mistake is one line and exit code 2."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest

from antfarm import __version__
from antfarm.settings import ProgramSettings, load_settings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(ProgramSettings):
    """One setting of each kind."""

    port: int = setting(50051, "Port to serve on; 0 picks a free one.", metavar="PORT")
    drain_s: float = setting(30.0, "Longest drain, in 100 % of cases.")
    state: Path | None = setting(None, "Directory of the journal.", metavar="DIR")
    app: tuple[str, ...] = setting((), "Module with tasks; may be given several times.", metavar="MODULE")
    backend: str = setting("file", "Kind of store.", choices=("file", "memory"))
    insecure: bool = setting(False, "Serve without protection.")
    places: int = setting(0, "Tasks at a time. Default: the number of CPUs.")
    as_: str = setting("", "A name that Python keeps for itself.")
    connect: str = setting(help="Address of the orchestrator.", short="-c", metavar="HOST:PORT")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ANTFARM_")]:
        monkeypatch.delenv(name)


def load(*argv: str) -> Example:
    """Settings from flags, with the one that must be given."""
    return load_settings(Example, ["--connect", "here:1", *argv], program="python -m services.example", description="x")


def refusal(capsys: pytest.CaptureFixture[str], *argv: str, given: bool = True) -> str:
    """The one line on standard error of a start that ends with exit code 2."""
    words = ["--connect", "here:1", *argv] if given else list(argv)
    with pytest.raises(SystemExit) as ended:
        load_settings(Example, words, program="python -m services.example", description="x")
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_defaults_hold_where_nothing_is_said() -> None:
    assert load() == Example(connect="here:1")
    settings = load()
    assert (settings.port, settings.drain_s, settings.state, settings.app) == (50051, 30.0, None, ())
    assert (settings.log_format, settings.log_level, settings.tls_ca) == ("text", "info", "")


def test_settings_do_not_change_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        load().port = 1  # type: ignore[misc]


def test_flags_win_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "farm.toml"
    config.write_text('port = 1\ndrain-s = 1.5\nbackend = "memory"\n[example]\ndrain_s = 2.5\napp = ["a", "b"]\n')
    monkeypatch.setenv("ANTFARM_PORT", "2")
    monkeypatch.setenv("ANTFARM_BACKEND", "file")
    settings = load("--config", str(config), "--port", "3")
    assert settings.port == 3  # flag over environment and file
    assert settings.backend == "file"  # environment over file
    assert settings.drain_s == 2.5  # the program's table over the top level
    assert settings.app == ("a", "b")
    assert settings.log_level == "info"  # default


def test_the_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "farm.toml"
    config.write_text("[example]\nport = 7\n[worker]\nport = 8\nslots = 3\n")
    monkeypatch.setenv("ANTFARM_CONFIG", str(config))
    assert load().port == 7


def test_a_needed_setting_may_come_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTFARM_CONNECT", "there:2")
    assert load_settings(Example, [], program="p", description="x").connect == "there:2"


def test_repeatable_flags_collect_and_replace_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTFARM_APP", "x,y")
    assert load().app == ("x", "y")
    assert load("--app", "one.py", "--app", "two,three").app == ("one.py", "two,three")


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("yes", True), ("On", True), ("false", False), ("0", False), ("", False)]
)
def test_booleans_of_the_environment(text: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTFARM_INSECURE", text)
    assert load().insecure is value
    assert load("--no-insecure").insecure is False
    assert load("--insecure").insecure is True


def test_a_name_that_python_keeps_is_written_without_its_underscore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load("--as", "flag").as_ == "flag"
    config = tmp_path / "farm.toml"
    config.write_text('[example]\nas = "file"\n')
    assert load("--config", str(config)).as_ == "file"
    monkeypatch.setenv("ANTFARM_AS", "environment")
    assert load("--config", str(config)).as_ == "environment"


def test_paths_and_optional_values(tmp_path: Path) -> None:
    assert load("--state", str(tmp_path)).state == tmp_path


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--port", "many"], "argument --port: invalid int value: 'many'"),
        (["--backend", "tape"], "argument --backend: invalid choice: 'tape' (choose from 'file', 'memory')"),
        (["--drain-s", "soon"], "argument --drain-s: invalid float value: 'soon'"),
        (["--prot", "1"], "unrecognized arguments: --prot 1"),
        (["--app"], "argument --app: expected one argument"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_one_line(argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, *argv) == f"python -m services.example: {line}; --help tells more"


def test_flags_are_not_guessed_from_their_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    """An abbreviation that works today would change its meaning with the next setting."""
    assert "unrecognized arguments: --drain" in refusal(capsys, "--drain", "3")


def test_a_missing_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, given=False) == "python -m services.example: --connect must be given"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ANTFARM_PORT", "many", "ANTFARM_PORT: port = 'many' is not of the form that --port takes"),
        ("ANTFARM_BACKEND", "tape", "ANTFARM_BACKEND: 'tape' is none of file, memory"),
        ("ANTFARM_INSECURE", "maybe", "ANTFARM_INSECURE: insecure = 'maybe' is not of the form that --insecure takes"),
        ("ANTFARM_CONFIG", "/no/such.toml", "--config /no/such.toml: No such file or directory"),
    ],
    ids=lambda value: value if value.startswith("ANTFARM") else "",
)
def test_a_wrong_variable_is_one_line(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert refusal(capsys) == f"python -m services.example: {words}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("port = ", "not TOML: "),
        ("[example]\nprot = 1\n", "[example] has no setting 'prot'"),
        ("port = [1]\n", "port = [1] is not of the form that --port takes"),
        ('backend = "tape"\n', "'tape' is none of file, memory"),
        ("example = 3\n", "[example] is not a table"),
        (b"port = 1 # \xff\n", "not UTF-8"),
    ],
    ids=["syntax", "unknown", "form", "choice", "no table", "bytes"],
)
def test_a_wrong_file_is_one_line(
    content: str | bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "farm.toml"
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refusal(capsys, "--config", str(config))
    assert line.startswith("python -m services.example: ")
    assert str(config) in line
    assert words in line


def test_settings_of_other_programs_may_stand_at_the_top_of_a_shared_file(tmp_path: Path) -> None:
    config = tmp_path / "farm.toml"
    config.write_text("slots = 4\nport = 9\n")
    assert load("--config", str(config)).port == 9


def test_help_shows_each_setting_with_its_default_and_exits_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load("--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in [
        "--port PORT Port to serve on; 0 picks a free one. Default: 50051.",
        "--drain-s DRAIN_S Longest drain, in 100 % of cases. Default: 30.0.",
        "--state DIR Directory of the journal.",
        "-c HOST:PORT, --connect HOST:PORT Address of the orchestrator.",
        "--backend {file,memory} Kind of store. Default: file.",
        "--places PLACES Tasks at a time. Default: the number of CPUs. --as",
        "--insecure, --no-insecure Serve without protection.",
        "--tls-cert FILE",
        "--log-format {text,json}",
        "ANTFARM_<NAME>",
    ]:
        assert words in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load("--version")
    assert (ended.value.code, capsys.readouterr().out) == (0, f"antfarm {__version__}\n")
