"""A small data set and command lines on it, and how to look at a run's results folder."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

SMALL = ["--nf", "3", "--kernel-size", "6", "--depth", "2", "--seed", "4", "--quiet"]
SMALL += ["--threads", "1"]


def write_data(folder: Path) -> str:
    """A small .npz with two classes of sines, labelled by strings."""
    generator = np.random.default_rng(0)
    y = np.arange(16) % 2
    X = np.sin(np.outer(1 + 2 * y, np.linspace(0, 12, 20))) + 0.1 * generator.normal(size=(16, 20))
    labels = np.array(["slow", "fast"])[y]
    path = folder / "toy.npz"
    np.savez(path, X_train=X[:10], y_train=labels[:10], X_test=X[10:], y_test=labels[10:])
    return str(path)


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
