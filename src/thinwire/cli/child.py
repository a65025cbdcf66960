"""`python -m thinwire.cli.child FILE LIFELINE`: the command of processes that `Children` starts."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Run the role in FILE; the exit status is that of the command line."""
    # A role that can be interrupted sets its own handler; otherwise the parent prints the message.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from thinwire.cli.app import guarded
    from thinwire.launch.lifeline import end_with_parent

    end_with_parent(int(sys.argv[2]))
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return guarded(lambda: ROLES[work["role"]](**work["arguments"]))


def replica(**arguments: Any) -> None:
    """A worker of a synchronous or periodic run, which holds the whole model."""
    from thinwire.launch.replica import run_replica

    run_replica(**arguments)


def server(**arguments: Any) -> None:
    """A server of an asynchronous run."""
    from thinwire.launch.parameter_server import serve_on_loopback

    serve_on_loopback(**arguments)


def worker(**arguments: Any) -> None:
    """A worker of an asynchronous run."""
    from thinwire.launch.parameter_server import work_on_loopback

    work_on_loopback(**arguments)


ROLES = {"replica": replica, "server": server, "worker": worker}

if __name__ == "__main__":
    sys.exit(main())
