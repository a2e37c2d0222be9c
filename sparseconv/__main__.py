"""``python -m sparseconv``: see ``cli``."""

from __future__ import annotations

import sys

from sparseconv.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
