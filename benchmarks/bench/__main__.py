"""``python -m benchmarks.bench``: measure, print and write."""

from __future__ import annotations

import sys

from benchmarks.bench.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
