"""`python -m thinwire` is `thinwire`."""

from __future__ import annotations

import sys

from thinwire.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
