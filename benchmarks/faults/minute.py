"""Runs the campaigns against saving, bad input, strangers and killed processes for a minute each.

    python -m benchmarks.faults.minute [saving] [inputs] [strangers] [soak] [--seed 1]

Without names: all four, as CI does. Each is bounded by its time, not by a number of trials, so a
slow machine tries less and fails no more for it. Exit status 1 if any of them failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

CAMPAIGNS = {
    "saving": ("--kills", "200", "--seconds", "60"),
    "inputs": ("--seconds", "50"),  # and some for what is good to begin with
    "strangers": ("--messages", "1500", "--seconds", "60"),
    "soak": ("--exchange", "supervised", "--faults", "3", "--tokens", "60000", "--minutes", "1"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(CAMPAIGNS))
    parser.add_argument("--seed", default="1")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CAMPAIGNS):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(CAMPAIGNS)}")
    failed = []
    for name in arguments.names or CAMPAIGNS:
        print(f"{name}:", flush=True)
        command = [sys.executable, "-m", f"benchmarks.faults.{name}", *CAMPAIGNS[name]]
        if subprocess.run([*command, "--seed", arguments.seed], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
