"""Train classifiers with sparse layers; save and load checkpoints."""

from sparseconv.running import predict_log_proba
from sparseconv.training.checkpoint import CheckpointError
from sparseconv.training.checkpoint import load as load_checkpoint
from sparseconv.training.checkpoint import save as save_checkpoint
from sparseconv.training.graphed import GraphedStep
from sparseconv.training.loop import CHECKPOINT_NAME, TrainingResult, train
from sparseconv.training.recipe import Recipe
from sparseconv.training.run import SchedulerFactory
from sparseconv.training.run_folder import TrainedRun

__all__ = [
    "CHECKPOINT_NAME",
    "CheckpointError",
    "GraphedStep",
    "Recipe",
    "SchedulerFactory",
    "TrainedRun",
    "TrainingResult",
    "load_checkpoint",
    "predict_log_proba",
    "save_checkpoint",
    "train",
]
