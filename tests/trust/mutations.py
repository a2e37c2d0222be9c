"""Damages patterns, state dicts and checkpoints and loads what comes out: run by a test.

    python tests/trust/mutations.py FOLDER PATTERNS STATES CHECKPOINTS

Each either loads, and then computes what it says, or is refused with a clear error that leaves
everything as it was. So is a call that needs more memory than there is. The numbers are those of
the cases. Prints, as JSON, how many did which, and what did neither.
"""

from __future__ import annotations

import copy
import io
import json
import random
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from child import limit_memory, refuses
from tiny import RECIPE, network, run, same
from torch import Tensor

from sparseconv import KernelCSR, SparseConv1d, sparse_conv1d
from sparseconv.training import checkpoint
from sparseconv.training.loop import CHECKPOINT_NAME as NAME

HUGE = (-1, 1, 2, 7, 2**31 - 1, -(2**31), 2**62)


def other_content(rng: random.Random, x: Tensor) -> Tensor:
    x = x.detach().clone(memory_format=torch.contiguous_format)
    flat = x.view(-1)
    at, other = rng.randrange(x.numel()), rng.randrange(x.numel())
    kind = rng.randrange(4)
    if kind == 0:
        flat[[at, other]] = flat[[other, at]].clone()
    elif kind == 1 and x.dtype in (torch.int32, torch.int64):
        limits = torch.iinfo(x.dtype)
        flat[at] = min(max(rng.choice(HUGE), limits.min), limits.max)
    elif kind == 2:
        flat[at:other] = flat[at]
    else:
        raw = flat.view(torch.uint8)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return x


def damaged_tensor(rng: random.Random, x: Tensor) -> Any:
    """Another content, shape, dtype, layout or thing."""
    if x.is_meta or x.is_sparse or x.dim() == 0:
        return None  # damaged already, or a number
    if rng.random() < 0.6 and x.numel():
        return other_content(rng, x)
    options: list[Callable[[], Any]] = [
        lambda: x[: rng.randrange(len(x) + 1)],
        lambda: torch.cat([x, x[-1:]]),
        lambda: x.unsqueeze(rng.choice((0, -1))),
        lambda: x.to(rng.choice((torch.int64, torch.float64, torch.bool))),
        lambda: x.repeat_interleave(2, 0)[::2],  # the same, not contiguous
        lambda: x.to("meta"),
        lambda: x.to_sparse(),
    ]
    return rng.choice(options)()


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry of a tree of dicts and lists: what holds it, and its key there."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


def damage_tree(rng: random.Random, tree: Any, times: int) -> None:
    """Change, remove or swap entries, anywhere in a tree of dicts and lists."""
    for _ in range(times):
        holder, key = rng.choice(list(places(tree)) or [({"": None}, "")])
        value, kind = holder[key], rng.random()
        if kind < 0.1:
            del holder[key]
        elif kind < 0.2:
            other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            holder[key], holder[other] = holder[other], value
        elif isinstance(value, Tensor):
            holder[key] = damaged_tensor(rng, value)
        elif isinstance(value, int | float):
            holder[key] = rng.choice((value + 1, -value, *HUGE, float("nan"), float("inf"), "x"))
        else:
            holder[key] = rng.choice((None, -1, 10**9, "x", [], {}, [value], torch.zeros(2), value))


def damaged_bytes(rng: random.Random, raw: bytes) -> bytes:
    """A flipped bit, a lost or repeated piece, an early end."""
    data, at = bytearray(raw), rng.randrange(len(raw))
    piece = slice(at, at + rng.choice((1, 4, 64, 700)))
    kind = rng.randrange(4)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        del data[piece]
    elif kind == 2:
        data[at:at] = data[piece]
    else:
        data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def damaged_archive(rng: random.Random, raw: bytes) -> bytes:
    """Damage inside the parts, or parts in each other's place, with checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    names = [name for name in parts if parts[name]]
    one, other = rng.choice(names), rng.choice(names)
    if rng.random() < 0.3:
        parts[one], parts[other] = parts[other], parts[one]
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
            assert KernelCSR(result.crow_indices, result.col_indices, result.shape) == result
            if result.shape[2] <= 20 and result.numel < 10**6:
                assert_computes(result, torch.randint(-4, 5, (result.nnz,)).float())
    return refusals > 0


def one_state(rng: random.Random) -> bool:
    layer = random_layer(rng)
    state = copy.deepcopy(dict(layer.state_dict()))
    damage_tree(rng, state, rng.choice((1, 1, 2, 3)))
    before = copy.deepcopy(dict(layer.state_dict()))
    raised, _ = refuses(lambda: layer.load_state_dict(state))
    if raised:
        assert same(before, dict(layer.state_dict())), "a refused state changed the layer"
    assert_computes(layer.pattern, layer.values)
    return raised


class Checkpoints:
    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe, self.path = folder, replace(RECIPE, epochs=4), folder / NAME

        def keep(history: list[Any]) -> None:
            if len(history) == 3:
                self.raw, self.content = self.path.read_bytes(), checkpoint.load(self.path)

        run(network(), self.recipe, out=folder, on_epoch=keep)

    def __call__(self, rng: random.Random) -> bool:
        kind = rng.random()
        if kind < 0.6:
            damaged = (damaged_bytes if kind < 0.3 else damaged_archive)(rng, self.raw)
        else:
            content, written = copy.deepcopy(self.content), io.BytesIO()
            damage_tree(rng, content, rng.choice((1, 1, 2)))
            torch.save(content, written)
            damaged = written.getvalue()
        self.path.write_bytes(damaged)
        model = network(1)
        before = copy.deepcopy(dict(model.state_dict()))
        raised, error = refuses(lambda: run(model, self.recipe, out=self.folder, resume=True))
        if raised and isinstance(error, checkpoint.CheckpointError):
            assert same(before, dict(model.state_dict())), "a refused file changed the model"
            assert self.path.read_bytes() == damaged, "a refused file was overwritten"
        elif raised:  # weights that are not finite, learnt from numbers that were changed
            assert "training loss became" in str(error), f"{type(error).__name__}: {error}"
        return raised


def check_scratch_memory() -> None:
    """More of it than there is, is refused, and the next call computes."""
    taps, dilation = 2**21, 31  # so far apart that with a stride each tap has its own tile
    pattern = KernelCSR.from_positions(torch.tensor([5]), (1, 1, taps))
    x, values = torch.ones(1, 1, (taps - 1) * dilation + 1), torch.tensor([2.0])
    refused, error = refuses(lambda: sparse_conv1d(x, values, pattern, stride=2, dilation=dilation))
    assert refused, "there was enough memory"
    assert "scratch memory" in str(error), error
    assert sparse_conv1d(x[..., :3], values, KernelCSR.full((1, 1, 1))).eq(2).all()


def main(folder: Path, *cases: int) -> None:
    limit_memory(2.0)
    torch.set_num_threads(1)
    check_scratch_memory()
    kinds: dict[str, Callable[[random.Random], bool]] = {
        "patterns": one_pattern,
        "states": one_state,
        "checkpoints": Checkpoints(folder),
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
