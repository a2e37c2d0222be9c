"""Networks made of sparse convolutions."""

from __future__ import annotations

from sparseconv.models.dsn import DSN, DSNCost

__all__ = ["DSN", "DSNCost"]
