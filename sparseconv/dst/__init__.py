"""Dynamic sparse training: when a pattern changes, and one change of it."""

from sparseconv.dst.scheduler import DSTScheduler
from sparseconv.dst.update import GROWTHS, cosine_decay, prune_and_grow

__all__ = ["GROWTHS", "DSTScheduler", "cosine_decay", "prune_and_grow"]
