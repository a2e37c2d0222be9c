"""Patterns of a trained network: ``python -m sparseconv.bench.trained RUN_FOLDER`` saves them.

``trained.npz`` beside this file was made by these two commands of version 0.1.0, torch 2.13.0:

    python -m sparseconv train GunPoint --epochs 500 --threads 1 --out gunpoint
    python -m sparseconv.bench.trained gunpoint

Of the network of least training loss (epoch 441) it holds the masks of the first layer and of the
last (the layers between have the last one's shape): a random pattern hardly compresses, and the
package stays small.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from sparseconv.core.pattern import KernelCSR
from sparseconv.models import DSN
from sparseconv.training.run_folder import load_run

FILE = Path(__file__).with_name("trained.npz")


def pattern(layer: str, file: Path = FILE) -> KernelCSR:
    """The saved pattern of the ``"first"`` or the ``"last"`` layer.

    Example:
        >>> pattern("last")
        KernelCSR(shape=(141, 47, 39), nnz=34459, density=13.33 %)
    """
    with np.load(file) as masks:
        return KernelCSR.from_mask(torch.from_numpy(masks[layer]))


def save(folder: Path, file: Path = FILE) -> None:
    """Save the patterns in the results folder of ``python -m sparseconv train``."""
    model = load_run(folder).model
    assert isinstance(model, DSN)
    first, *_, last = (layer.pattern.to_mask().numpy() for layer in model.sparse_layers())
    np.savez_compressed(file, first=first, last=last)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
