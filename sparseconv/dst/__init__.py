"""Provide dynamic sparse training: the schedule of updates, and single updates."""

from sparseconv.dst.scheduler import DSTScheduler
from sparseconv.dst.update import GROWTHS, cosine_decay, prune_and_grow

__all__ = ["GROWTHS", "DSTScheduler", "cosine_decay", "prune_and_grow"]
