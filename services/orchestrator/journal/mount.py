"""On what kind of file system a directory lies, as far as Linux tells: locks and SQLite's log of changes want a local one.

Whoever keeps a journal on a network file system is warned and not refused: some of them do work, and nobody can tell from outside which.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

MOUNTINFO = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"(fuse\.)?(9p|afs|beegfs|ceph|cifs|coda|davfs2?|gcsfuse|.*glusterfs|gpfs|juicefs|lustre|moosefs|ncpfs|nfs[34]?|orangefs|pvfs2|rclone|s3fs"
    r"|smb[23]|smbfs|sshfs)"
)
"""Types of file systems whose files lie on other machines; `fuse.` is before those that a program serves."""
_ESCAPED = re.compile(r"\\([0-7]{3})")


def network_type(directory: Path) -> str:
    """The type of the network file system on which the directory lies, or will lie; empty on a local one, and where nobody can tell."""
    try:
        text = MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
        kind = type_at(text, PurePosixPath(directory.resolve()))
    except (OSError, RuntimeError):  # no Linux, or links in a circle
        return ""
    return kind if _NETWORK.fullmatch(kind) else ""


def type_at(mountinfo: str, path: PurePosixPath) -> str:
    """The type of the file system that is mounted nearest above an absolute path without links; of several at one place the last covers the others."""
    best, found = 0, ""
    for line in mountinfo.split("\n"):  # neither lines nor words end at anything else, which names may have in them
        mount, _, source = line.partition(" - ")
        words = mount.split(" ")
        if len(words) < 6 or not source:
            continue
        point = PurePosixPath(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), words[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), source.split(" ")[0]
    return found
