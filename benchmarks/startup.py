"""How long does `thinwire --help` take?

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
from time import perf_counter

from record import spread, table, write

RUNS = 15


def main() -> None:
    rows, record = [], {}
    for arguments in (["--help"], ["train", "--help"]):
        command = [sys.executable, "-m", "thinwire", *arguments]
        times = []
        for _ in range(RUNS + 1):
            began = perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(perf_counter() - began)
        record[" ".join(arguments)] = times[1:]  # the first one compiles
        rows.append({"command": f"`thinwire {' '.join(arguments)}`", "seconds": spread(times[1:])})
    write("startup", "Start-up", f"{RUNS} runs each.\n\n{table(rows)}", record)


if __name__ == "__main__":
    main()
