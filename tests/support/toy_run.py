"""A small data set and command lines on it, and how to look at a run's results folder."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseconv.models import DSN
from sparseconv.training import checkpoint

SMALL = ["--nf", "3", "--kernel-size", "6", "--depth", "2", "--seed", "4", "--quiet"]
SMALL += ["--threads", "1"]


# Everything that a run can be told, none of it the default.
NETWORK = {
    "sparsity": 0.5, "nf": 5, "kernel_size": 8, "depth": 3, "n_groups": 2, "init": "random",
    "padding": "centred-zeros", "block": 5, "backend": "reference",
}  # fmt: skip
RECIPE = {
    "epochs": 3, "lr": 2e-3, "lr_min": 1e-3, "weight_decay": 0.1, "batch_size": 7,
    "update_every_epochs": 2, "update_every_steps": 4, "skip_step_at_update": True,
    "decay_share": 0.5, "prune_fraction": 0.4, "prune_floor": 0.1, "grow": "gradient",
    "precision": "bfloat16",
}  # fmt: skip


def is_network(model: DSN) -> bool:
    """Whether it is a ``DSN(1, ..., **NETWORK)``."""
    layers = model.sparse_layers()
    of_each = {(x.padding_mode, x.padding, x.backend, len(x.regions)) for x in layers}
    shapes = [layer.pattern.shape for layer in layers]
    return (
        of_each == {("zeros", (3, 4), "reference", 2)}
        and shapes == [(15, 1, 8), (15, 5, 8), (15, 5, 8)]
        and [layer.pattern.block for layer in layers] == [(1, 1), (5, 5), (5, 5)]
        and layers[1].pattern.nnz == int(10 * 5 * 4 * 0.5) + int(5 * 5 * 8 * 0.5)
    )


def waves(n_cases: int, length: int) -> tuple[Any, Any]:
    """Sines of two classes with noise, ``(n_cases, length)``, labelled by strings."""
    y = np.arange(n_cases) % 2
    X = np.sin(np.outer(1 + 2 * y, np.linspace(0, 12, length)))
    X += 0.1 * np.random.default_rng(0).normal(size=X.shape)
    return X, np.array(["slow", "fast"])[y]


def write_data(folder: Path) -> str:
    """A small .npz of ``waves``."""
    X, labels = waves(16, 20)
    path = folder / "toy.npz"
    np.savez(path, X_train=X[:10], y_train=labels[:10], X_test=X[10:], y_test=labels[10:])
    return str(path)


def stop_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Ctrl-C happen once, right after the checkpoint of an epoch; 0: before the first."""
    real, count = checkpoint.save, 0

    def save(*args: Any) -> None:
        nonlocal count
        if epochs:
            real(*args)
        count += 1
        if count >= epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save)


def history(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open() as file:
        return list(csv.DictReader(file))


def losses(out: Path) -> list[str]:
    return [row["train_loss"] for row in history(out)]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
