"""How long does `thinwire --help` take?

python -m benchmarks.questions.startup
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from time import perf_counter

from benchmarks.record.write import spread, table, write

RUNS, QUICK_RUNS = 15, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two runs each")
    num_runs = QUICK_RUNS if parser.parse_args().quick else RUNS
    rows, record = [], {}
    for arguments in (["--help"], ["train", "--help"]):
        command = [sys.executable, "-m", "thinwire", *arguments]
        times = []
        for _ in range(num_runs + 1):
            began = perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(perf_counter() - began)
        record[" ".join(arguments)] = times[1:]  # the first one compiles
        rows.append({"command": f"`thinwire {' '.join(arguments)}`", "seconds": spread(times[1:])})
    write("startup", "Start-up", f"{num_runs} runs each.\n\n{table(rows)}", record)


if __name__ == "__main__":
    main()
