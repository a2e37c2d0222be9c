"""Read the results folder of ``python -m sparseconv train``."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sparseconv.core.arrays import as_series
from sparseconv.core.generators import Drawing
from sparseconv.models import DSN
from sparseconv.ops.backends import Backend
from sparseconv.pruning.filters import keep_filters
from sparseconv.rocket import RocketModel
from sparseconv.rocket.bank import POCKET
from sparseconv.running import predict_log_proba
from sparseconv.training import checkpoint
from sparseconv.training.loop import CHECKPOINT_NAME
from sparseconv.training.recipe import Recipe

CONFIG_NAME, HISTORY_NAME, MODEL_NAME = "config.json", "history.csv", "model.npz"

# The options of a run, with their defaults, by model and section of config.json.
NETWORK: dict[str, Any] = {
    parameter.name: parameter.default
    for parameter in inspect.signature(DSN).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
}
RECIPE: dict[str, Any] = {field.name: field.default for field in fields(Recipe)}
DATA: dict[str, Any] = {"nan_to_zero": False, "validation": False}
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "dsn": {"data": DATA, "network": NETWORK, "recipe": RECIPE},
    "pocket": {"data": {"nan_to_zero": False}, "pocket": POCKET | {"seed": 0}},
}


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """Result of ``python -m sparseconv train``.

    Attributes:
        model: the best epoch's network, in eval mode on the CPU, or a ``RocketModel``. A network
            maps ``(N, n_channels, length)`` to log-probabilities ``(N, n_classes)``.
        classes: label of each class, in the order of the model's outputs.
        epoch: the best epoch, counted from 1; None for a ``RocketModel``.
        epochs_done: epochs trained, fewer than the recipe's in an unfinished run; None for a
            ``RocketModel``.
        config: the content of ``config.json``: data, network and recipe (or pocket), and machine. A
            pruned run also has ``"pruning"``: the criterion, and each layer's kept filters.
    """

    model: DSN | RocketModel
    classes: npt.NDArray[Any]
    epoch: int | None
    epochs_done: int | None
    config: Mapping[str, Any]

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the most probable label of each series, ``(n_cases,)`` from ``classes``.

        Args:
            X: an array ``(n_cases, n_channels, length)``, or ``(n_cases, length)`` with one
                channel, scaled like the training series. A network accepts any length. Missing
                values are read as 0 if the run was trained with ``--nan-to-zero``.
        """
        if isinstance(self.model, RocketModel):
            return self.model.predict(self._series(X))
        labels: npt.NDArray[Any] = self.classes[self.predict_proba(X).argmax(1)]
        return labels

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the probabilities of ``classes``, ``(n_cases, n_classes)``; see ``predict``."""
        if isinstance(self.model, RocketModel):
            return self.model.predict_proba(self._series(X))
        log_proba = predict_log_proba(self.model, torch.from_numpy(self._series(X)))
        proba: npt.NDArray[np.float64] = log_proba.double().softmax(1).numpy()
        return proba

    def _series(self, X: Any) -> npt.NDArray[np.float32]:
        return as_series("predict", "X", X, self.config["data"]["nan_to_zero"] or None)


def load_run(path: str | os.PathLike[str], *, backend: Backend = "auto") -> TrainedRun:
    """Read the model that ``python -m sparseconv train`` wrote.

    Args:
        path: a run's results folder, finished or not, its ``checkpoint.pt``, or the ``model.npz``
            of ``--model pocket``. A network has the weights of its best epoch so far.
        backend: as in ``sparse_conv1d``, for networks; the run may have used a different one.

    Raises:
        ValueError, OSError: ``path`` does not belong to a run, or a file is unreadable.
        CheckpointError: a damaged checkpoint, or the checkpoint of a different network.

    Example:
        >>> import tempfile
        >>> from sparseconv.cli.main import main
        >>> folder = tempfile.mkdtemp()
        >>> words = ["--epochs", "1", "--nf", "4", "--depth", "2", "--quiet", "--out", folder]
        >>> main(["train", "GunPoint", *words])  # doctest: +ELLIPSIS
        GunPoint: test accuracy ...
        0
        >>> run = load_run(folder)
        >>> run.classes, run.epoch
        (array(['1', '2'], dtype='<U1'), 1)
        >>> run.predict([[0.0] * 150]).shape
        (1,)
    """
    path = Path(path)
    is_file = path.is_file() or (path.suffix in (".pt", ".npz") and not path.is_dir())
    folder = path.parent if is_file else path
    config = read_config(folder)
    pocket = config.get("model", "dsn") == "pocket"
    file = path if is_file else folder / (MODEL_NAME if pocket else CHECKPOINT_NAME)
    if not file.exists():
        raise ValueError(
            f"{file} does not exist: the run has saved nothing yet; start it again, or resume it "
            "with --resume"
        )
    if pocket:
        found = RocketModel.load(file)
        return TrainedRun(found, found.classes, None, None, config)
    content, data = checkpoint.load(file), config["data"]
    best, done = content["best"], len(content["history"])
    network = {name: config["network"][name] for name in NETWORK} | {"backend": backend}
    with Drawing():  # the first weights are drawn, then overwritten
        model: Any = DSN(data["n_channels"], len(data["classes"]), **network)
    try:
        saved = (x.dtype for x in best["model"].values() if x.is_floating_point())
        model.to(next(saved))  # not the default dtype
        if "pruning" in config:
            example = torch.zeros(1, data["n_channels"], data["n_timepoints"])
            model = keep_filters(model, example, config["pruning"]["filters"])
        model.load_state_dict(best["model"])
    except Exception as error:  # whatever a file can hold
        raise checkpoint.CheckpointError(
            f"{file} does not match its {CONFIG_NAME}, or is damaged: {error}; train again"
        ) from error
    return TrainedRun(model.eval(), np.array(data["classes"]), best["epoch"], done, config)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's ``config.json``; raise ValueError if it lacks an option of this version."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder.absolute()} is not a results folder of `python -m sparseconv train`: it "
            f"contains no {CONFIG_NAME} (sparseconv.training.train writes only the checkpoint)"
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for section, options in MODELS[config.get("model", "dsn")].items():
            found = config[section]
            for name in options:
                found[name]
        config["machine"]["threads"]
        for name in ("n_channels", "n_timepoints", "n_train", "classes"):
            config["data"][name]
        Recipe(**config.get("recipe", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged, or was written by another version ({type(error).__name__}: "
            f"{error}); start a new run in another folder"
        ) from error
    return config
