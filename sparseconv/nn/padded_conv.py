"""What a subclass of ``nn.Conv1d`` computes, where that is to pad, convolve and cut off ends."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from sparseconv.core.geometry import output_length, resolve_padding, single
from sparseconv.nn.modules import computes_as, deepcopy_model
from sparseconv.nn.state import shared_options

_MODES = {"constant": "zeros", **{mode: mode for mode in ("replicate", "reflect", "circular")}}
_LENGTHS = (*range(70), 100, 127, 128, 1000, 1001, 4096, 10_007)  # samples beyond the kernel


def convolution_of(conv: nn.Conv1d) -> dict[str, Any]:
    """Return the arguments of the ``SparseConv1d`` that computes what ``conv`` does.

    The code of a subclass is run on ``_Series`` of many lengths, in both modes.

    Raises:
        TypeError: it does more than pad, convolve and cut off ends, or not always the same.
    """
    kind, own = type_before_parametrizations(conv), vars(conv).keys() & {"forward", "_conv_forward"}
    if computes_as(conv, (nn.Conv1d,)) and not own:
        return shared_options(conv) | {"padding": conv.padding}
    try:
        if own or kind.__call__ is not nn.Module.__call__:
            raise TypeError("it is called in another way")
        twin = _without_weights(conv, kind)
        found, *others = (_run(twin, n, mode) for n in _LENGTHS for mode in (True, False))
        if any(other != found for other in others):
            raise TypeError("what it pads or cuts off depends on the length or the mode")
    except Exception as error:  # of any code
        raise TypeError(
            f"conv must pad, convolve and cut off ends only, but {kind.__name__} has its own "
            f"code: {error}; copy its weight and bias into an nn.Conv1d, and put what else it does "
            "into a module around that"
        ) from None
    return shared_options(conv) | found


def _without_weights(conv: Any, kind: Any) -> Any:
    """Copy a layer, for its code may write into what it holds; without pruning."""
    twin: Any = deepcopy_model(conv)
    twin.__class__ = kind
    sizes = {"weight": (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)}
    sizes |= {} if conv.bias is None else {"bias": (conv.out_channels,)}
    for name, size in sizes.items():
        vars(twin).pop(name, None)  # what pruning has computed
        twin._parameters[name] = nn.Parameter(torch.empty(size, device="meta"))
    return twin


def _run(twin: Any, beyond: int, training: bool) -> dict[str, Any]:
    """Run the code of a layer's class."""
    twin.train(training)
    length = twin.dilation[0] * (twin.kernel_size[0] - 1) + 1 + beyond
    x = _Series(twin, length, {"padding": (0, 0), "padding_mode": "zeros"})
    y = type(twin).forward(twin, x)
    if not isinstance(y, _Series) or "stride" not in y.done:
        raise TypeError("it returns something else")
    return y.done


class _Series:
    """A batch of series without samples, and what was done to them."""

    def __init__(self, conv: Any, length: int, done: dict[str, Any]) -> None:
        self.conv, self.done = conv, done
        self.shape = (2, conv.out_channels if "stride" in done else conv.in_channels, length)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        steps: dict[Any, Any] = {F.pad: _pad, torch.conv1d: _convolve}
        if func not in steps:
            raise TypeError(f"it calls {getattr(func, '__name__', func)}")
        return steps[func](*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        raise TypeError(f"it uses {name} of its input")

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    def contiguous(self) -> _Series:
        return self

    def then(self, left: int, right: int, **done: Any) -> _Series:
        """Pad, or where negative cut off."""
        padding = self.done["padding"][0] + left, self.done["padding"][1] + right
        if min(padding) < 0:
            raise TypeError("it cuts off more than it pads")
        done = {**self.done, "padding": padding, **done}
        return _Series(self.conv, self.shape[2] + left + right, done)

    def __getitem__(self, key: Any) -> _Series:
        *before, ends = key if isinstance(key, tuple) else (key,)
        whole = before in ([...], [slice(None)] * 2) and isinstance(ends, slice)
        if not whole or self.done.get("stride") != 1 or ends.step not in (None, 1):
            raise TypeError("it cuts otherwise than off the ends of an output with stride 1")
        start, stop, _ = ends.indices(self.shape[2])
        return self.then(-start, stop - self.shape[2])


def _pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> _Series:
    left, right, *others = pad
    done, mode = input.done, _MODES[mode]
    if not left and not right and not any(others):
        return input  # type: ignore[no-any-return]
    again = any(done["padding"]) and {mode, done["padding_mode"]} != {"zeros"}
    if any(others) or value or min(left, right) < 0 or again or "stride" in done:
        raise TypeError("it pads twice, late, other ends, or not by zeros")
    return input.then(left, right, padding_mode=mode)  # type: ignore[no-any-return]


def _convolve(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Series:
    if "stride" in input.done or weight is not input.conv.weight or bias is not input.conv.bias:
        raise TypeError("it convolves twice, or not with its own weight and bias")
    taps, stride, dilation = weight.shape[2], single("", stride, 1), single("", dilation, 1)
    x = _pad(input, resolve_padding(padding, taps, dilation, stride))
    done = x.done | {"stride": stride, "dilation": dilation, "groups": groups}
    return _Series(x.conv, output_length(x.shape[2], taps, stride, (0, 0), dilation), done)
