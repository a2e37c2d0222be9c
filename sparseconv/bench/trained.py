"""Patterns of a trained network: ``python -m sparseconv.bench.trained RUN_FOLDER`` saves them.

``trained.json`` beside this file was made by these two commands:

    python -m sparseconv train GunPoint --epochs 500 --threads 1 --out gunpoint
    python -m sparseconv.bench.trained gunpoint

Of the network of least training loss it holds the first layer and the last one (the layers between
have the last one's shape): a random pattern hardly compresses, and the package stays small.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import zlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseconv.core.pattern import KernelCSR
from sparseconv.training import checkpoint

FILE = "trained.json"


def encode(pattern: KernelCSR) -> dict[str, Any]:
    """The pattern as text: shape, nnz, and the mask's bits, compressed (zlib, base64).

    Example:
        >>> pattern = KernelCSR.random((4, 3, 5), 20)
        >>> decode(encode(pattern)) == pattern
        True
    """
    bits = np.packbits(pattern.to_mask().numpy().ravel()).tobytes()
    text = base64.b64encode(zlib.compress(bits, 9)).decode()
    return {"shape": list(pattern.shape), "nnz": pattern.nnz, "mask": text}


def decode(entry: dict[str, Any]) -> KernelCSR:
    """The pattern that ``encode`` was given.

    Raises:
        ValueError: the text holds another number of weights than it says.
    """
    shape = tuple(entry["shape"])
    packed = np.frombuffer(zlib.decompress(base64.b64decode(entry["mask"])), dtype=np.uint8)
    bits = np.unpackbits(packed, count=int(np.prod(shape))).astype(bool)
    pattern = KernelCSR.from_mask(torch.from_numpy(bits).view(shape))
    if pattern.nnz != entry["nnz"]:
        raise ValueError(f"expected {entry['nnz']} active weights, but the mask has {pattern.nnz}")
    return pattern


@functools.cache
def saved() -> dict[str, Any]:
    """The file: ``"provenance"``, and ``"layers"`` by name (``"first"``, ``"last"``)."""
    content: dict[str, Any] = json.loads(files(__package__).joinpath(FILE).read_text())
    return content


def pattern(layer: str) -> KernelCSR:
    """The saved pattern of the ``"first"`` or the ``"last"`` layer.

    Example:
        >>> pattern("last")
        KernelCSR(shape=(141, 47, 39), nnz=34459, density=13.33 %)
    """
    return decode(saved()["layers"][layer])


def collect(run: Path) -> dict[str, Any]:
    """What to save of the results folder of ``python -m sparseconv train``.

    Raises:
        OSError, ValueError: it is no such folder.
    """
    config = json.loads((run / "config.json").read_text())
    state = checkpoint.load(run / "checkpoint.pt")
    best = state["best"]
    names = [name.removesuffix("col_indices") for name in best["model"] if "col_indices" in name]
    weights = {name: best["model"][f"{name}crow_indices"] for name in names}
    depth, network = len(weights), config["network"]
    layers = {}
    for label, index in (("first", 0), ("last", depth - 1)):
        name = names[index]
        out_channels = 3 * network["nf"]
        in_channels = (len(weights[name]) - 1) // out_channels
        layers[label] = encode(
            KernelCSR(
                weights[name],
                best["model"][f"{name}col_indices"],
                (out_channels, in_channels, network["kernel_size"]),
            )
        )
    return {
        "provenance": {
            "data": config["data"]["name"],
            "network": network,
            "recipe": config["recipe"],
            "kept_epoch": best["epoch"],
            "sparseconv": config["machine"]["sparseconv"],
            "torch": config["machine"]["torch"],
        },
        "layers": layers,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sparseconv.bench.trained",
        description="Save the patterns of a finished training run as the benchmark's.",
    )
    parser.add_argument("run", type=Path, help="results folder of python -m sparseconv train")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(FILE))
    arguments = parser.parse_args(argv)
    content = collect(arguments.run)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
