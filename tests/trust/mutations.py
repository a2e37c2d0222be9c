"""Damages patterns, state dicts, checkpoints and banks and loads what comes out: run by a test.

    python tests/trust/mutations.py FOLDER PATTERNS STATES CHECKPOINTS BANKS

Each either loads, and then computes what it says, or is refused with a clear error that leaves
everything as it was. The numbers are those of the cases. Prints, as JSON, how many did which, and
what did neither.
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


def other_content(rng: random.Random, x: Tensor) -> Tensor:
    x = x.detach().clone(memory_format=torch.contiguous_format)
    flat = x.view(-1)
    at, other = rng.randrange(x.numel()), rng.randrange(x.numel())
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


def damaged_tensor(rng: random.Random, x: Tensor) -> Any:
    """Another content, shape, dtype, layout or thing."""
    if x.is_meta or x.is_sparse:
        return x  # damaged already
    if rng.random() < 0.6 and x.numel():
        return other_content(rng, x)
    size = x.shape[0] if x.dim() else 0
    options: list[Callable[[], Any]] = [
        lambda: x[: rng.randrange(size + 1)] if size else x[None],
        lambda: torch.cat([x, x[-1:]]) if size else x,
        lambda: x.flatten()[:0],
        lambda: x.unsqueeze(rng.choice((0, -1))),
        lambda: x.to(rng.choice(DTYPES)),
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


def damage_tree(rng: random.Random, tree: Any, times: int = 1) -> None:
    """Change, remove, add or swap entries, anywhere in a tree of dicts and lists."""
    for _ in range(times):
        at = tree
        while keys := list(at) if isinstance(at, dict) else list(range(len(at))):
            key, kind = rng.choice(keys), rng.random()
            inner = at[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.9:
                at = inner
                continue
            if kind < 0.1:
                del at[key]
            elif kind < 0.2:
                other = rng.choice(keys)
                at[key], at[other] = at[other], at[key]
            elif kind < 0.25 and isinstance(at, dict):
                at[rng.choice(("weight", "extra"))] = inner
            else:
                at[key] = damage_of(rng, inner)
            break


def damaged_bytes(rng: random.Random, raw: bytes) -> bytes:
    """Flipped bits, a lost or repeated piece, an early end."""
    data, at = bytearray(raw), rng.randrange(len(raw))
    length = min(len(raw) - at, rng.choice((1, 4, 64, 700)))
    kind = rng.randrange(5)
    if kind == 0:
        del data[at:]
    elif kind == 1:
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
    sizes = rng.randint(1, 4), rng.randint(1, 5), rng.choice((1, 3, 8))
    layer = SparseConv1d(*sizes, density=rng.random())
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randint(-4, 5, parameter.shape))
    return layer


def assert_computes(pattern: KernelCSR, values: Tensor) -> None:
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
        "crow": pattern.crow_indices.clone(), "col": pattern.col_indices.clone(),
        "shape": list(pattern.shape), "positions": pattern.positions(), "mask": pattern.to_mask(),
    }  # fmt: skip
    damage_tree(rng, tree, rng.choice((1, 1, 2, 3)))
    shape = tree.get("shape")
    shape = tuple(shape) if isinstance(shape, list) else shape
    refusals = 0
    for make in (
        lambda: KernelCSR(tree.get("crow"), tree.get("col"), shape),
        lambda: KernelCSR.from_positions(tree.get("positions"), shape),
        lambda: KernelCSR.from_mask(tree.get("mask")),
    ):
        raised, result = refuses(make)
        refusals += raised
        if not raised:
            result.validate()
            if result.shape[2] <= 20 and result.numel < 10**6:
                assert_computes(result, torch.randint(-4, 5, (result.nnz,)).float())
    return refusals > 0


def one_state(rng: random.Random) -> bool:
    layer, other = random_layer(rng), random_layer(rng)
    state = copy.deepcopy(dict((layer if rng.random() < 0.9 else other).state_dict()))
    damage_tree(rng, state, rng.choice((1, 1, 2, 3)))
    before = copy.deepcopy(dict(layer.state_dict()))
    raised, _ = refuses(lambda: layer.load_state_dict(state))
    if raised:
        assert same(before, dict(layer.state_dict())), "a refused state changed the layer"
    assert_computes(layer.pattern, layer.values)
    return raised


class Checkpoints:
    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe = folder, replace(RECIPE, epochs=4)
        self.path, copied = folder / "checkpoint.pt", folder / "copied.pt"

        def keep(history: list[Any]) -> None:
            if len(history) == 3:
                copied.write_bytes(self.path.read_bytes())

        run(network(), self.recipe, out=folder, on_epoch=keep)
        self.raw, self.content = copied.read_bytes(), checkpoint.load(copied)

    def __call__(self, rng: random.Random) -> bool:
        kind = rng.random()
        if kind < 0.3:
            damaged = damaged_bytes(rng, self.raw)
        elif kind < 0.6:
            damaged = damaged_archive(rng, self.raw)
        else:
            content, written = copy.deepcopy(self.content), io.BytesIO()
            damage_tree(rng, content, rng.choice((1, 1, 2)))
            torch.save(content, written)
            damaged = written.getvalue()
        self.path.write_bytes(damaged)
        model = network(1)
        before = copy.deepcopy(dict(model.state_dict()))
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
        self.path.write_bytes(damage(rng, rng.choice(self.raw)))
        raised, bank = refuses(lambda: KernelBank.load(self.path))
        if raised:
            assert isinstance(bank, ValueError), f"{type(bank).__name__}: {bank}"
        elif bank.series_channels * bank.series_length < 10**5:
            shape = rng.randint(1, 20), bank.series_channels, bank.series_length
            X = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            features = kernel_features(X, bank)
            largest = max(np.abs(bank.arrays.get(name, 0)).max() for name in ("weights", "bias"))
            if largest < 1e30:  # else sums may be infinite
                lowest, highest = feature_limits(X, bank)
                assert ((lowest <= features) & (features <= highest)).all(), "other features"
        return raised


def main(folder: Path, *cases: int) -> None:
    limit_memory(2.0)
    torch.set_num_threads(1)
    kinds: dict[str, Callable[[random.Random], bool]] = {
        "patterns": one_pattern,
        "states": one_state,
        "checkpoints": Checkpoints(folder),
        "banks": Banks(folder),
    }
    refused, faults = dict.fromkeys(kinds, 0), []
    for (kind, one), count in zip(kinds.items(), cases, strict=True):
        for number in range(count):
            torch.manual_seed(number)
            try:
                refused[kind] += one(random.Random(number))
            except Exception as error:
                faults.append(f"{kind} {number}: {type(error).__name__}: {error}")
    print(json.dumps({"refused": refused, "faults": faults}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
