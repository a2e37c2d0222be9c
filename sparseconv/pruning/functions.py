"""How functions treat channels, by their names and arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions by name, of torch, of tensors and of torch.nn.functional alike.
MOVES = _names("""
    view reshape flatten unflatten squeeze squeeze_ unsqueeze unsqueeze_ transpose transpose_
    swapaxes swapdims permute movedim moveaxis contiguous clone detach cat concat concatenate stack
    chunk split tensor_split narrow unbind select __getitem__ flip roll expand expand_as view_as
    repeat_interleave
""")
# A channel of the result comes from the same channel of the input; other dimensions may change.
ALONE = _names("""
    relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ celu selu gelu silu mish hardswish hardtanh
    hardtanh_ hardsigmoid sigmoid sigmoid_ logsigmoid tanh tanh_ softplus softsign threshold
    softshrink hardshrink tanhshrink abs neg __neg__ exp log log1p sqrt rsqrt square pow __pow__
    reciprocal clamp clamp_ clamp_min clamp_max clip sign sin cos erf nan_to_num to type float
    double half bfloat16 cpu cuda requires_grad_ dropout dropout1d feature_dropout alpha_dropout
    max_pool1d max_pool1d_with_indices avg_pool1d lp_pool1d adaptive_avg_pool1d adaptive_max_pool1d
    adaptive_max_pool1d_with_indices interpolate upsample pad softmax log_softmax cumsum
""")
MAY_MIX = _names("softmax log_softmax cumsum")  # where they run along the channels
REDUCTIONS = _names("mean sum amax amin max min std var norm logsumexp median")
TOGETHER = _names("""
    add add_ __add__ __radd__ __iadd__ sub sub_ __sub__ __rsub__ __isub__ subtract mul mul_ __mul__
    __rmul__ __imul__ multiply div div_ __truediv__ __rtruediv__ __itruediv__ divide maximum minimum
    where lerp gt ge lt le eq ne greater less __gt__ __ge__ __lt__ __le__ __eq__ __ne__
""")


def indices(name: str, args: Any) -> list[Any]:
    """What picks elements out of a tensor, by their values."""
    return tree_leaves(args[1:]) if name == "__getitem__" else []


def dimensions(name: str, args: Any, kwargs: Any, count: int) -> set[int]:
    """Those that a reduction, or a softmax, names."""
    position = 2 if name == "norm" else 1
    given = kwargs.get("dim", kwargs.get("axis", args[position] if len(args) > position else None))
    if given is None or isinstance(given, bool | float | Tensor):
        return set()
    dims = given if isinstance(given, tuple | list) else [given]
    return {dim % count for dim in dims}
