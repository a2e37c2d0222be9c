"""Defaults of ``POCKETClassifier``, for those who must not wait until aeon is imported."""

from __future__ import annotations

from typing import Any

POCKET: dict[str, Any] = {
    "kernels": "rocket", "n_kernels": 10_000, "keep": 0.35, "k": 1.0, "n_iter": 50, "refit": True,
}  # fmt: skip
