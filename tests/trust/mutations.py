"""Damages patterns, state dicts, checkpoints and banks and loads what comes out: run by a test.

    python tests/trust/mutations.py patterns|states|checkpoints|banks SEED CASES FOLDER

Each either loads, and then computes what it says, or is refused with a clear error that leaves
everything as it was. Prints, as JSON, how many did which, and what did neither.
"""

from __future__ import annotations

import copy
import io
import json
import random
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from child import limit_memory, refuses
from random_banks import KINDS, Problem, feature_limits
from tiny import RECIPE, network, run, same
from torch import Tensor

from sparseconv import KernelCSR, SparseConv1d, sparse_conv1d
from sparseconv.rocket import KernelBank, kernel_features
from sparseconv.training import checkpoint

DTYPES = (torch.int64, torch.int16, torch.float64, torch.bool, torch.uint8)
HUGE = (-1, 1, 2, 7, 2**31 - 1, -(2**31), 2**62)


def damaged_tensor(rng: random.Random, x: Tensor) -> Any:
    """Another content, shape, dtype, layout or thing."""
    if x.is_meta or x.is_sparse:
        return x  # damaged already
    at, other = (rng.randrange(x.numel()) if x.numel() else 0 for _ in "ab")
    if rng.random() < 0.6 and x.numel():
        x = x.detach().clone(memory_format=torch.contiguous_format)
        flat = x.view(-1)
        kind = rng.randrange(5)
        if kind == 0:
            flat[[at, other]] = flat[[other, at]].clone()
        elif kind == 1 and x.dtype in (torch.int32, torch.int64):
            limits = torch.iinfo(x.dtype)
            flat[at] = min(max(rng.choice(HUGE), limits.min), limits.max)
        elif kind == 2:
            flat[at] = float("nan") if x.dtype.is_floating_point else flat[at] ^ True
        elif kind == 3:
            flat[at:other] = flat[at]
        else:
            raw = flat.view(torch.uint8)
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return x
    size = x.shape[0] if x.dim() else 0
    options: list[Callable[[], Any]] = [
        lambda: x[: rng.randrange(size + 1)] if size else x[None],
        lambda: torch.cat([x, x[-1:]]) if size else x,
        lambda: x.flatten()[:0],
        lambda: x.unsqueeze(rng.choice((0, -1))),
        lambda: x.to(
            rng.choice((torch.int64, torch.int16, torch.float64, torch.bool, torch.uint8))
        ),
        lambda: x.flip(0) if x.dim() else x,
        lambda: x.repeat_interleave(2, 0)[::2] if size else x,  # the same, not contiguous
        lambda: x.flatten()[:1].expand(x.shape) if x.numel() and x.dim() else x,
        lambda: x.to("meta"),
        lambda: x.to_sparse() if x.dim() else x,
        lambda: x.tolist(),
        lambda: rng.choice((None, "x", 3, {}, float("nan"))),
    ]
    return rng.choice(options)()


def damage_of(rng: random.Random, value: Any) -> Any:
    if isinstance(value, Tensor):
        return damaged_tensor(rng, value)
    if isinstance(value, int | float) and rng.random() < 0.7:
        return rng.choice((value + 1, value - 1, -value, *HUGE, float("nan"), float("inf")))
    return rng.choice((None, -1, 0, 10**9, "x", [], {}, [value], value, torch.zeros(2), True))


def damage_tree(rng: random.Random, tree: Any) -> None:
    """Change, remove, add or swap one entry, anywhere in a tree of dicts and lists."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = tree[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.9:
            tree = inner
            continue
        kind = rng.random()
        if kind < 0.1:
            del tree[key]
        elif kind < 0.2:
            other = rng.choice(keys)
            tree[key], tree[other] = tree[other], tree[key]
        elif kind < 0.25 and isinstance(tree, dict):
            tree[rng.choice(("weight", "extra"))] = inner
        elif kind < 0.25:
            tree.append(inner)
        else:
            tree[key] = damage_of(rng, inner)
        return


def damaged_bytes(rng: random.Random, raw: bytes) -> bytes:
    """Flipped bits, a lost or repeated piece, an early end."""
    data, at = bytearray(raw), rng.randrange(len(raw))
    length = min(len(raw) - at, rng.choice((1, 4, 64, 700)))
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        del data[at : at + length]
    elif kind == 2:
        data[at:at] = data[at : at + length]
    elif kind == 3:
        data[at : at + length] = bytes(length)
    else:
        for _ in range(rng.choice((1, 1, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def damaged_archive(rng: random.Random, raw: bytes) -> bytes:
    """Damage inside the parts, or parts in each other's place, with checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    names = [name for name in parts if parts[name]]
    one, other = rng.choice(names), rng.choice(names)
    if rng.random() < 0.3:
        parts[one], parts[other] = parts[other], parts[one]
    elif rng.random() < 0.1:
        del parts[one]
    else:
        parts[one] = damaged_bytes(rng, parts[one])
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return written.getvalue()


def random_layer(rng: random.Random) -> SparseConv1d:
    layer = SparseConv1d(
        rng.randint(1, 4), rng.randint(1, 5), rng.choice((1, 3, 8)), density=rng.random()
    )
    with torch.no_grad():
        layer.values.copy_(torch.randint(-4, 5, layer.values.shape))
        assert layer.bias is not None
        layer.bias.copy_(torch.randint(-4, 5, layer.bias.shape))
    return layer


def computes(pattern: KernelCSR, values: Tensor) -> None:
    """All three computations on whole numbers, against the dense path."""
    weight = torch.zeros(pattern.shape).masked_scatter(pattern.to_mask(), values.detach())
    x = torch.randint(-4, 5, (2, pattern.shape[1], 20)).float()
    inputs = [t.detach().requires_grad_() for t in (x, values, weight)]
    y, dense = sparse_conv1d(inputs[0], inputs[1], pattern), F.conv1d(inputs[0], inputs[2])
    grad = torch.randint(-4, 5, y.shape).float()
    dx, dw = torch.autograd.grad(y, inputs[:2], grad)
    dense_dx, dense_dw = torch.autograd.grad(dense, (inputs[0], inputs[2]), grad)
    found, expected = (y, dx, dw), (dense, dense_dx, dense_dw[pattern.to_mask()])
    if (values.abs() < 2**10).all() and (values % 1 == 0).all():  # then every sum is exact
        assert all(map(torch.equal, found, expected)), "it computes something else"


def one_pattern(rng: random.Random) -> bool:
    """Whether it was refused."""
    pattern = random_layer(rng).pattern
    tree: dict[Any, Any] = {
        "crow": pattern.crow_indices.clone(),
        "col": pattern.col_indices.clone(),
    }
    tree |= {"shape": list(pattern.shape), "positions": pattern.positions()}
    tree["mask"] = pattern.to_mask()
    for _ in range(rng.choice((1, 1, 2, 3))):
        damage_tree(rng, tree)
    shape = tree.get("shape")
    shape = tuple(shape) if isinstance(shape, list) else shape
    made = []
    for make in (
        lambda: KernelCSR(tree.get("crow"), tree.get("col"), shape),
        lambda: KernelCSR.from_positions(tree.get("positions"), shape),
        lambda: KernelCSR.from_mask(tree.get("mask")),
    ):
        raised, result = refuses(make)
        if not raised:
            result.validate()
            if result.shape[2] <= 20 and result.numel < 10**6:
                computes(result, torch.randint(-4, 5, (result.nnz,)).float())
            made.append(result)
    return len(made) < 3


def one_state(rng: random.Random) -> bool:
    layer, state = random_layer(rng), dict(random_layer(rng).state_dict())
    if rng.random() < 0.9:
        state = copy.deepcopy(dict(layer.state_dict()))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if state:
            damage_tree(rng, state)
    before = copy.deepcopy(dict(layer.state_dict()))
    raised, _ = refuses(lambda: layer.load_state_dict(state))
    if raised:
        assert same(before, dict(layer.state_dict())), "a refused state changed the layer"
    computes(layer.pattern, layer.values)
    return raised


class Checkpoints:
    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe = folder, replace(RECIPE, epochs=4)
        stopped = []

        def stop(history: list[Any]) -> None:
            if len(history) == 3:
                stopped.append(True)
                raise KeyboardInterrupt

        try:
            run(network(), self.recipe, out=folder, on_epoch=stop)
        except KeyboardInterrupt:
            assert stopped
        self.path = folder / "checkpoint.pt"
        self.raw, self.content = self.path.read_bytes(), checkpoint.load(self.path)

    def __call__(self, rng: random.Random) -> bool:
        kind = rng.random()
        if kind < 0.3:
            damaged = damaged_bytes(rng, self.raw)
        elif kind < 0.6:
            damaged = damaged_archive(rng, self.raw)
        else:
            content = copy.deepcopy(self.content)
            for _ in range(rng.choice((1, 1, 2))):
                damage_tree(rng, content)
            written = io.BytesIO()
            torch.save(content, written)
            damaged = written.getvalue()
        self.path.write_bytes(damaged)
        model = network(1)
        before = checkpoint.snapshot(model)
        raised, error = refuses(lambda: run(model, self.recipe, out=self.folder, resume=True))
        if raised:
            if isinstance(error, checkpoint.CheckpointError):
                assert same(before, dict(model.state_dict())), "a refused file changed the model"
                assert self.path.read_bytes() == damaged, "a refused file was overwritten"
            else:  # weights that are not finite, learnt from numbers that were changed
                assert "training loss became" in str(error), f"{type(error).__name__}: {error}"
        return raised


class Banks:
    """Files of random kernels."""

    def __init__(self, folder: Path) -> None:
        self.path, self.raw = folder / "bank.npz", []
        for kind, seed in product(KINDS, (1, 2, 5, 6)):
            Problem(kind, seed).bank.save(self.path)
            self.raw.append(self.path.read_bytes())

    def __call__(self, rng: random.Random) -> bool:
        damage = damaged_bytes if rng.random() < 0.3 else damaged_archive
        damaged = damage(rng, rng.choice(self.raw))
        self.path.write_bytes(damaged)
        raised, found = refuses(lambda: KernelBank.load(self.path))
        if raised:
            assert isinstance(found, ValueError), f"{type(found).__name__}: {found}"
            assert self.path.read_bytes() == damaged, "a refused file was changed"
        elif found.series_channels * found.series_length < 10**5:
            self.computes(found, rng)
        return raised

    def computes(self, bank: KernelBank, rng: random.Random) -> None:
        shape = rng.randint(1, 20), bank.series_channels, bank.series_length
        X = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        features = kernel_features(X, bank)
        largest = max(np.abs(bank.arrays.get(name, 0)).max() for name in ("weights", "bias"))
        if largest < 1e30:  # else sums may be infinite
            lowest, highest = feature_limits(X, bank)
            assert ((lowest <= features) & (features <= highest)).all(), "other features"


def main(what: str, seed: int, cases: int, folder: Path) -> None:
    limit_memory(2.0)
    torch.set_num_threads(1)
    one: Callable[[random.Random], bool]
    one = {"patterns": one_pattern, "states": one_state}.get(what) or (
        Banks(folder) if what == "banks" else Checkpoints(folder)
    )
    refused, faults = 0, []
    for number in range(seed, seed + cases):
        torch.manual_seed(number)
        try:
            refused += one(random.Random(number))
        except Exception as error:
            faults.append(f"{what} {number}: {type(error).__name__}: {error}")
    print(json.dumps({"refused": refused, "loaded": cases - refused, "faults": faults}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
