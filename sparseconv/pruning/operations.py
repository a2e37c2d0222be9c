"""How operations treat channels. To have one more followed, add its name to ``RULES``.

A rule is a function of a ``Call``: it says which channels the outputs have, and returns whether it
could. Functions of torch, of tensors and of ``torch.nn.functional`` alike are found by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from sparseconv.pruning.channels import Numbers


class Call(NamedTuple):
    """One call of an operation.

    Attributes:
        numbers: the channels of all tensors.
        name: of the operation, as in ``RULES``.
        inputs: the tensors among the arguments whose channels are followed, at least one.
        outputs: the tensors of the result, at least one.
    """

    numbers: Numbers
    name: str
    func: Callable[..., Any]
    args: Any
    kwargs: Any
    inputs: list[Tensor]
    outputs: list[Tensor]

    @property
    def dims(self) -> set[int]:
        """The dimensions that ``dim`` or ``axis`` names; none if there is no such argument."""
        position = 2 if self.name == "norm" else 1
        given = self.args[position] if len(self.args) > position else None
        given = self.kwargs.get("dim", self.kwargs.get("axis", given))
        if given is None or isinstance(given, bool | float | Tensor):
            return set()
        dims = given if isinstance(given, tuple | list) else [given]
        return {dim % self.inputs[0].dim() for dim in dims}


def alone(call: Call) -> bool:
    """A channel comes from the same channel of the only input; other dimensions may change."""
    (x, *others), out = call.inputs, call.outputs[0]
    channels, dim = call.numbers[x]
    if others or out.dim() != x.dim() or out.shape[dim] != len(channels):
        return False
    call.numbers.follow(out, channels, dim)
    return True


def one_slope(call: Call) -> bool:
    """As ``alone``; a slope for each channel would have to be pruned."""
    slope = call.kwargs["weight"] if "weight" in call.kwargs else call.args[-1]
    return slope.numel() == 1 and alone(call)


def along(call: Call) -> bool:
    """As ``alone``; where it runs along the channels, each result depends on all of them."""
    if call.numbers[call.inputs[0]][1] in call.dims:
        call.numbers.fix(call.inputs[0])
    return alone(call)


def reduces(call: Call) -> bool:
    """Dimensions go; if the channels' is among them, the results depend on all of them."""
    x, *others = call.inputs
    channels, dim = call.numbers[x]
    if others:
        return False
    if dim in call.dims or not call.dims:
        call.numbers.fix(x)
        return True
    before = 0 if call.outputs[0].dim() == x.dim() else sum(gone < dim for gone in call.dims)
    for output in call.outputs:
        call.numbers.follow(output, channels, dim - before)
    return True


def multiplies(call: Call) -> bool:
    """A matrix multiplies the last dimension, which must not be the channels'."""
    x, *others = call.inputs
    channels, dim = call.numbers[x]
    if others or x is not call.args[0] or dim == x.dim() - 1:
        return False
    call.numbers.follow(call.outputs[0], channels, dim)
    return True


def together(call: Call) -> bool:
    """Channels that meet are one, aligned at the last dimension as torch broadcasts."""
    first, out = call.inputs[0], call.outputs[0]
    channels, dim = call.numbers[first]
    from_end = first.dim() - dim
    if out.dim() < from_end:  # torch.where(condition) gives indices
        return False
    for other in tree_leaves((call.args, call.kwargs)):
        if not isinstance(other, Tensor) or other is first:
            continue
        if (found := call.numbers.get(other)) is None:
            if other.dim() >= from_end and other.shape[-from_end] != 1:
                return False  # a constant for each channel
        elif other.dim() - found[1] != from_end or len(found[0]) != len(channels):
            return False
        else:
            call.numbers.unite(channels, found[0])
    call.numbers.follow(out, channels, out.dim() - from_end)
    return True


def moves(call: Call) -> bool:
    """Data are moved: the operation is applied to the channels' numbers."""
    dims = [call.numbers[x][1] for x in call.inputs]

    def numbered(x: Tensor) -> Tensor:
        """Give each sample its channel's number; what is not followed yet gets ones that stay."""
        if (found := call.numbers.get(x)) is None:
            is_index = x.dtype in (torch.bool, torch.int64) and x.dim() < 2
            if is_index or dims[0] >= x.dim():
                return x
            found = call.numbers.new(x.shape[dims[0]], fixed=True), dims[0]
        shape = [1] * x.dim()
        shape[found[1]] = -1
        return found[0].view(shape).expand(x.shape).contiguous()

    args, kwargs = tree_map_only(Tensor, numbered, (call.args, call.kwargs))
    moved = [x for x in tree_leaves(call.func(*args, **kwargs)) if isinstance(x, Tensor)]
    for result, output in zip(moved, call.outputs, strict=True):
        dim = _differing(result, dims)
        if dim is None:
            return False
        call.numbers.follow(output, result.movedim(dim, 0).flatten(1)[:, 0].clone(), dim)
    return True


def takes(call: Call) -> bool:
    """As ``moves``; which channels an index takes may depend on the data."""
    return len(call.inputs) == 1 and call.inputs[0] is call.args[0] and moves(call)


def _differing(numbers: Tensor, along: Sequence[int]) -> int | None:
    """Return the only dimension along which numbers differ; of one channel, the first of size 1."""
    if numbers.numel() == 0:
        return None
    every = range(numbers.dim())
    dims = [dim for dim in every if (numbers != numbers.narrow(dim, 0, 1)).any()]
    if not dims:
        dims = [dim for dim in (*along, *every[1:]) if numbers.shape[dim : dim + 1] == (1,)][:1]
    return dims[0] if len(dims) == 1 else None


_NAMES = {
    moves: """
        view reshape flatten unflatten squeeze squeeze_ unsqueeze unsqueeze_ transpose transpose_
        swapaxes swapdims permute movedim moveaxis contiguous clone detach cat concat concatenate
        stack chunk split tensor_split narrow unbind select flip roll expand expand_as view_as
        repeat_interleave
    """,
    takes: "__getitem__",
    alone: """
        relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ celu selu gelu silu mish hardswish hardtanh
        hardtanh_ hardsigmoid sigmoid sigmoid_ logsigmoid tanh tanh_ softplus softsign threshold
        softshrink hardshrink tanhshrink abs neg __neg__ exp log log1p sqrt rsqrt square pow __pow__
        reciprocal clamp clamp_ clamp_min clamp_max clip sign sin cos erf nan_to_num to type float
        double half bfloat16 cpu cuda requires_grad_ dropout dropout1d feature_dropout alpha_dropout
        max_pool1d max_pool1d_with_indices avg_pool1d lp_pool1d adaptive_avg_pool1d
        adaptive_max_pool1d adaptive_max_pool1d_with_indices interpolate upsample pad
    """,
    one_slope: "prelu",
    along: "softmax log_softmax cumsum",
    reduces: "mean sum amax amin max min std var norm logsumexp median",
    multiplies: "matmul __matmul__",
    together: """
        add add_ __add__ __radd__ __iadd__ sub sub_ __sub__ __rsub__ __isub__ subtract mul mul_
        __mul__ __rmul__ __imul__ multiply div div_ __truediv__ __rtruediv__ __itruediv__ divide
        maximum minimum where lerp gt ge lt le eq ne greater less __gt__ __ge__ __lt__ __le__ __eq__
        __ne__
    """,
}
RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}
