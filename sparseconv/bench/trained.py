"""Patterns of a trained network: ``python -m sparseconv.bench.trained RUN_FOLDER`` saves them.

``trained.json`` beside this file was made by these two commands:

    python -m sparseconv train GunPoint --epochs 500 --threads 1 --out gunpoint
    python -m sparseconv.bench.trained gunpoint

Of the network of least training loss it holds the first layer and the last one (the layers between
have the last one's shape): a random pattern hardly compresses, and the package stays small.
"""

from __future__ import annotations

import base64
import functools
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseconv.core.pattern import KernelCSR
from sparseconv.training.run_folder import load_run

FILE = Path(__file__).with_name("trained.json")


def encode(pattern: KernelCSR) -> dict[str, Any]:
    """The pattern as text: shape, nnz, and the mask's bits, compressed (zlib, base64)."""
    bits = np.packbits(pattern.to_mask().numpy().ravel()).tobytes()
    text = base64.b64encode(zlib.compress(bits, 9)).decode()
    return {"shape": list(pattern.shape), "nnz": pattern.nnz, "mask": text}


def decode(entry: dict[str, Any]) -> KernelCSR:
    """The pattern that ``encode`` was given."""
    shape = tuple(entry["shape"])
    packed = np.frombuffer(zlib.decompress(base64.b64decode(entry["mask"])), dtype=np.uint8)
    bits = np.unpackbits(packed, count=int(np.prod(shape))).astype(bool)
    return KernelCSR.from_mask(torch.from_numpy(bits).view(shape))


@functools.cache
def saved() -> dict[str, Any]:
    """The file: ``"provenance"``, and ``"layers"`` by name (``"first"``, ``"last"``)."""
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def pattern(layer: str) -> KernelCSR:
    """The saved pattern of the ``"first"`` or the ``"last"`` layer.

    Example:
        >>> pattern("last")
        KernelCSR(shape=(141, 47, 39), nnz=34459, density=13.33 %)
    """
    return decode(saved()["layers"][layer])


def collect(folder: Path) -> dict[str, Any]:
    """What to save of the results folder of ``python -m sparseconv train``."""
    run = load_run(folder)
    config, layers = run.config, run.model.sparse_layers()
    return {
        "provenance": {
            "data": config["data"]["name"],
            "network": config["network"],
            "recipe": config["recipe"],
            "sparseconv": config["machine"]["sparseconv"],
            "torch": config["machine"]["torch"],
        },
        "layers": {"first": encode(layers[0].pattern), "last": encode(layers[-1].pattern)},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(collect(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
