"""Training a classifier with sparse layers: the loop, its recipe, checkpoints and run folders."""

from sparseconv.training.checkpoint import CheckpointError
from sparseconv.training.loop import CHECKPOINT_NAME, TrainingResult, train
from sparseconv.training.recipe import Recipe
from sparseconv.training.run import SchedulerFactory

__all__ = [
    "CHECKPOINT_NAME",
    "CheckpointError",
    "Recipe",
    "SchedulerFactory",
    "TrainingResult",
    "train",
]
