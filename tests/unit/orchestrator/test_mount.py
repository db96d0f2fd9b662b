"""A journal on a network file system is told of at the start: which file system a directory lies on is read as Linux writes it."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath

import pytest

from antfarm.errors import InvalidArgument
from services.orchestrator import app
from services.orchestrator.journal import mount
from services.orchestrator.settings import OrchestratorSettings

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 0:50 / /home rw,relatime shared:2 master:3 - nfs4 server:/home rw,vers=4.2
41 40 254:1 /fast /home/ann/scratch rw,relatime - xfs /dev/vdb rw
42 27 0:50 /shared\040files /srv/with\040space\134and\011tab rw,relatime - nfs server:/home rw
43 27 0:51 / /data rw - cifs //server/data rw
44 27 254:0 /var/data /data rw - ext4 /dev/vda rw
45 27 0:52 / /far rw - fuse.sshfs ann@server:/ rw
46 27 0:53 / /vol rw - fuse.glusterfs server:vol rw
47 27 0:54 / /local rw - fuse.ntfs-3g /dev/sdc rw
48 27 0:55 / /scratch rw - lustre 10.0.0.1@tcp:/scratch rw
49 27 0:56 / /nbsp ab rw - beegfs beegfs rw
a line that nobody can read
50 27 0:57
""".replace("nbsp ", "nbsp\u00a0")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/antfarm", "ext4"),
        ("/home", "nfs4"),
        ("/home/ann/.local/state/antfarm/up", "nfs4"),
        ("/home/ann/scratch/state", "xfs"),
        ("/home/ann/scratchy", "nfs4"),
        ("/homes/ann", "ext4"),
        ("/srv/with space\\and\ttab/state", "nfs"),
        ("/srv/with space", "ext4"),
        ("/data/state", "ext4"),
        ("/nbsp\u00a0ab/state", "beegfs"),
        ("/proc/1", "proc"),
    ],
)
def test_the_nearest_mount_above_a_path_is_the_one_that_counts(path: str, kind: str) -> None:
    assert mount.type_at(MOUNTS, PurePosixPath(path)) == kind


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("home/ann/state", "nfs4"),
        ("srv/with space\\and\ttab", "nfs"),
        ("far", "fuse.sshfs"),
        ("vol/a", "fuse.glusterfs"),
        ("scratch", "lustre"),
        ("local", ""),
        ("data", ""),
        ("var", ""),
    ],
)
def test_network_file_systems_are_told_from_local_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, kind: str
) -> None:
    mounts(tmp_path, monkeypatch)
    assert mount.network_type(tmp_path / directory) == kind


def test_a_link_into_a_network_file_system_leads_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(tmp_path, monkeypatch)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    assert mount.network_type(tmp_path / "link" / "state") == "nfs4"


def test_where_nobody_can_tell_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount, "MOUNTINFO", tmp_path / "none")
    assert mount.network_type(tmp_path) == ""
    monkeypatch.undo()
    assert mount.network_type(Path("/proc")) == ""


async def test_a_state_on_a_network_file_system_is_told_of_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mounts(tmp_path, monkeypatch)
    (tmp_path / "home").write_text("no directory, which ends the start")
    (tmp_path / "local").write_text("no directory either")
    for name in ("local", "home"):
        assert not caplog.records
        with pytest.raises(InvalidArgument):
            await app.serve(OrchestratorSettings(port=0, state=str(tmp_path / name)))
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert line.getMessage() == (
        f"--state {tmp_path / 'home'} lies on a network file system (nfs4), where no lock and no write-ahead log of SQLite can be trusted:"
        " give a --state on a local disk"
    )


def mounts(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the mounts lie below the directory."""
    text = "\n".join(
        " ".join([*words[:4], f"{directory}{words[4]}", *words[5:]])
        for words in (line.split(" ") for line in MOUNTS.split("\n"))
        if len(words) > 5 and words[4].startswith("/")
    )
    (directory / "mountinfo").write_text(text)
    monkeypatch.setattr(mount, "MOUNTINFO", directory / "mountinfo")
