"""Follow channels through operations: most are tried, some have a rule in ``RULES``.

An operation is followed if applying it to some of the channels yields the corresponding part of its
results (``tried``). Rules come first, for operations that move or divide channels. A rule is a
function of a ``Call`` that assigns the channels of the outputs and returns whether it succeeded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sparseconv.pruning.channels import ChannelNumbers
from sparseconv.running import close

FEW, TRIALS = 64, 8  # a few numbers may agree by chance, so there are more trials
CALM = {"train": False, "training": False, "dropout_p": 0.0}  # with these, nothing is random
# Operations that use only an input's type, or by which torch.distributions checks values.
APART = "empty_like is_all_true new new_empty new_full new_ones new_tensor new_zeros"
# Tensors after the first one give only a shape or a type.
LIKE = "expand_as reshape_as to type_as view_as"
# Operations that read or write data and return no tensor.
READS = "allclose array bool contains equal float index int item iter numpy setitem tolist"


@dataclass
class Call:
    """Record a call to an operation before it runs, because the operation may work in place.

    Attributes:
        own: the model's parameters and buffers outside the layers, by id.
        inputs: the tensors among the arguments that are followed and may lose channels.
        fixed: the inputs whose channels must be kept.
    """

    numbers: ChannelNumbers
    own: Mapping[int, tuple[str, Tensor]]
    func: Callable[..., Any]
    args: Any
    kwargs: Any
    outputs: list[Tensor] = field(default_factory=list)
    fixed: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        name = getattr(self.func, "__name__", str(self.func))
        if name == "__get__":  # a computed attribute, such as x.mT
            name = self.func.__self__.__name__  # type: ignore[attr-defined]
        self.name: str = name.strip("_")
        given = self.args[:1] if self.name in LIKE.split() else (self.args, self.kwargs)
        self.tensors = {id(x): x for x in tree_leaves(given) if isinstance(x, Tensor)}
        self.inputs = [x for x in self.tensors.values() if self.numbers.free(x)]
        self.shapes = {key: x.shape for key, x in self.tensors.items()}

    def run(self, data: Mapping[int, Tensor]) -> list[Tensor]:
        """Run the operation with other tensors, by id; return the tensors in its result."""
        given = self.args, self.kwargs
        args, kwargs = tree_map_only(Tensor, lambda x: data.get(id(x), x).clone(), given)
        return [x for x in tree_leaves(self.func(*args, **kwargs)) if isinstance(x, Tensor)]

    def follow(self) -> None:
        """Find the channels of the outputs; if this fails, fill ``fixed``."""
        with warnings.catch_warnings(action="ignore"):  # the operation itself has warned already
            for way in (RULES.get(self.name), tried if self.outputs else None):
                # A way may fail under vmap, or because the operation refuses other arguments.
                with suppress(Exception):
                    if way and way(self):
                        return
        self.fixed = self.inputs


def tried(call: Call) -> bool:
    """Follow an operation if some channels yield the same results without the others."""
    if call.name == "local_response_norm":  # how little it mixes channels depends on their sizes
        return False
    numbers, by_count = call.numbers, dict[int, list[Tensor]]()
    for x in call.inputs:
        by_count.setdefault(len(numbers[x][0]), []).append(x)
    for chosen in [*by_count.values(), *([x] for x in call.inputs if len(call.inputs) > 1)]:
        dims = {id(x): numbers[x][1] for x in chosen}
        first, dim = numbers[chosen[0]]
        from_end = len(call.shapes[id(chosen[0])]) - dim
        claimed = {  # tensors that may have these channels, where broadcasting aligns them
            key: x.dim() - from_end
            for key, x in call.tensors.items()
            if numbers.get(x) is None
            and x.dim() >= from_end
            and x.shape[x.dim() - from_end] == len(first)
            # All channels are equal, for example in zeros that pad a series.
            and (key in call.own or (x == x.narrow(x.dim() - from_end, 0, 1)).all())
        }
        for more in [claimed, {}] if claimed else [{}]:
            try:
                found = _trial(call, dims | more, len(first))
            except Exception:  # the operation refuses this number of channels
                continue
            if not all(found):
                continue
            owned = [key for key in more if key in call.own]
            for key in owned:
                numbers.follow(call.tensors[key], numbers.new(len(first)), more[key])
            for key in [*dims, *owned][1:]:
                numbers.unite(first, numbers[call.tensors[key]][0])
            call.fixed = [x for x in call.inputs if id(x) not in dims]
            for output, counted in zip(call.outputs, found, strict=True):
                numbers.follow(output, first, counted[0])
            return True
    return False


def _trial(call: Call, dims: Mapping[int, int], n: int) -> list[list[int]]:
    """Run the call with some of the channels; return each output's dimensions that contain them.

    Args:
        dims: by tensor id, the dimension of these channels.
    """
    rng = np.random.default_rng(0)  # while tracing, torch draws the same everywhere
    # A single channel shows nothing: there are no others to leave out.
    found = [[dim for dim in range(x.dim()) if x.shape[dim] == n > 1] for x in call.outputs]
    few = max(shape.numel() for shape in call.shapes.values()) < FEW
    for _ in range(TRIALS if few else 1):
        data = {id(x): _random(x, call.shapes[id(x)], rng) for x in call.inputs}
        whole = call.run(data)
        for part in torch.from_numpy(rng.permutation(n)).tensor_split(2):
            part = part.sort().values
            parts = {
                key: data.get(key, x).index_select(dims[key], part.to(x.device))
                for key, x in call.tensors.items()
                if key in dims
            }
            some = call.run(data | parts)
            for left, x, y in zip(found, whole, some, strict=True):
                left[:] = [dim for dim in left if close(y, x.index_select(dim, part.to(x.device)))]
    return found


def _random(x: Tensor, shape: torch.Size, rng: np.random.Generator) -> Tensor:
    """Draw data in place of a tensor; constant data would hide differences between channels."""
    drawn = torch.from_numpy(rng.random(shape))
    return (drawn if x.is_floating_point() or x.is_complex() else drawn > 0.5).to(x)


def moves(call: Call) -> bool:
    """Move the channels' numbers as the operation moves the data of its first argument."""
    dims = [call.numbers[x][1] for x in call.inputs]
    first = call.args[0] if call.args else [call.kwargs.get(key) for key in ("input", "tensors")]
    data = {id(x) for x in tree_leaves(first)}
    others = [x for key, x in call.tensors.items() if key not in data]
    if any(x.dim() > 1 or call.numbers.free(x) is not None for x in others):
        return False  # it may be an index that depends on the channels

    def numbered(x: Tensor) -> Tensor:
        """Return each sample's channel number; channels of unfollowed tensors are kept."""
        if not x.numel():
            return x.long()
        size = call.shapes[id(x)]
        if (found := call.numbers.get(x)) is None:
            found = call.numbers.new(size[dims[0]], "they are not followed"), dims[0]
        shape = [1] * len(size)
        shape[found[1]] = -1
        return found[0].view(shape).expand(size).contiguous()

    moved = call.run({key: numbered(x) for key, x in call.tensors.items() if key in data})
    for result, output in zip(moved, call.outputs, strict=True):
        dim = _differing(result, dims)
        if dim is None or result.shape != output.shape:
            return False
        call.numbers.follow(output, result.movedim(dim, 0).flatten(1)[:, 0].clone(), dim)
    return True


def splits(call: Call) -> bool:
    """Try ``moves``; if it fails, unite the groups of channels that get a separate dimension."""
    if moves(call):
        return True
    (channels, dim), out = call.numbers[call.inputs[0]], call.outputs[0]
    if out.shape[:dim] != call.shapes[id(call.inputs[0])][:dim]:
        return False
    groups = channels.view(*out.shape[dim : dim + 2])
    for group in groups[1:]:
        call.numbers.unite(groups[0], group)
    call.numbers.follow(out, groups[0], dim + 1)
    return True


def pads(call: Call) -> bool:
    """Apply ``moves``; padding next to the channels becomes channels that are kept."""

    def padded(x: Tensor, pad: Sequence[int], mode: str = "constant", _: Any = None) -> Tensor:
        return F.pad(x, pad, mode, 0)  # such channels have the number 0

    kwargs = {"_" if key == "value" else key: x for key, x in call.kwargs.items()}
    return moves(Call(call.numbers, {}, padded, call.args, kwargs, call.outputs))


def parts(call: Call) -> bool:
    """Apply ``moves``; then unite equal parts of the channels, so that their sizes stay equal."""
    if not moves(call):
        return False
    channels, _ = call.numbers[call.inputs[0]]
    found = [call.numbers[x][0] for x in call.outputs]
    if len(found[0]) < len(channels):
        if len({len(part) for part in found}) > 1:
            return False
        for other in found[1:]:
            call.numbers.unite(found[0], other)
    return True


def halves(call: Call) -> bool:
    """Unite the two halves of the channels, which the operation combines."""
    channels, dim = call.numbers[call.inputs[0]]
    first, second = channels.chunk(2)
    if call.outputs[0].shape[dim] != len(first):
        return False
    call.numbers.unite(first, second)
    call.numbers.follow(call.outputs[0], first, dim)
    return True


def _differing(numbers: Tensor, along: Sequence[int]) -> int | None:
    """Return the only dimension along which numbers differ; for a single channel, one of size 1."""
    if numbers.numel() == 0:
        return None
    every = range(numbers.dim())
    dims = [dim for dim in every if (numbers != numbers.narrow(dim, 0, 1)).any()]
    if not dims:
        dims = [dim for dim in (*along, *every[1:]) if numbers.shape[dim : dim + 1] == (1,)][:1]
    return dims[0] if len(dims) == 1 else None


_NAMES = {
    moves: """
        reshape_as flatten squeeze unsqueeze transpose swapaxes
        swapdims permute movedim moveaxis T mT adjoint t contiguous clone detach data narrow unbind
        select unfold flip expand expand_as view_as broadcast_to repeat tile repeat_interleave
        cat concat concatenate stack hstack vstack dstack getitem
    """,
    splits: "view reshape unflatten",
    parts: "chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split",
    halves: "glu",
    pads: "pad constant_pad_nd",
}
RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}


class SameDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Make random operations draw the same values for every channel, however many there are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, schema = kwargs or {}, func._schema
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **given)
        names = [argument.name for argument in schema.arguments]
        if calm := {name: value for name, value in CALM.items() if name in names}:
            return func(**(dict(zip(names, args, strict=False)) | given | calm))
        self.draws += 1
        torch.default_generator.manual_seed(self.draws)
        result = func(*args, **given)
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.is_floating_point():
                x.fill_(0.5)
        return result
