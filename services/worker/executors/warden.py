"""The warden: a tiny process that outlives the agent by a moment and kills the process groups that it leaves behind.

The kernel's death signal reaches direct children only. What those started lives in their process groups, and the warden knows these: the agent
tells it `+GROUP` and `-GROUP`. The end of its standard input is the agent's death, whatever its cause.

Run as a script by its path, without site packages, so that it costs ten milliseconds and little memory.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Listen until the agent dies, then kill what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the agent, not with the agent's terminal
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
