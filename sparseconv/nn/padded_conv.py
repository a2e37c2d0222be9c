"""Find what a subclass of ``nn.Conv1d`` computes if it only pads, convolves and crops."""

from __future__ import annotations

import inspect
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode, resolve_name

from sparseconv.core.geometry import Geometry
from sparseconv.core.modules import deepcopy_model

# Questions about a tensor that do not read what it contains.
_ASKED: Any = (Tensor.shape, Tensor.ndim, Tensor.dtype, Tensor.device)
_QUESTIONS = {Tensor.size, Tensor.dim, *(attribute.__get__ for attribute in _ASKED)}

# What may hold code in place of the class's.
OVERRIDES = {"forward", "_conv_forward"}


def padding_of(conv: nn.Conv1d) -> dict[str, Any]:
    """Return the padding and its mode with which a convolution computes what ``conv`` does."""
    kind = type_before_parametrizations(conv)
    try:
        if OVERRIDES & vars(conv).keys() or kind.__call__ is not nn.Module.__call__:
            raise TypeError("it replaces forward, _conv_forward or __call__")
        if len(takes := inspect.signature(conv.forward).parameters) > 1:
            raise TypeError(
                f"its forward takes ({', '.join(takes)}), but must take only the series"
            )
        return _padding_of_twin(_without_data(conv, kind))
    except Exception as error:  # the layer's code may raise anything
        raise TypeError(
            f"conv must only pad, convolve and crop, but {kind.__name__} does more: {error}; "
            "copy its weight and bias into an nn.Conv1d, and move its other code into a module "
            "around it"
        ) from None


def _without_data(conv: Any, kind: Any) -> Any:
    """Copy a layer to the meta device, without its pruning."""
    twin: Any = deepcopy_model(conv).to("meta")
    twin.__class__ = kind
    sizes = {"weight": (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)}
    sizes |= {} if conv.bias is None else {"bias": (conv.out_channels,)}
    for name, size in sizes.items():
        vars(twin).pop(name, None)  # pruning's result would hide the parameter
        twin._parameters[name] = nn.Parameter(torch.empty(size, device="meta"))
    return twin


def _padding_of_twin(twin: Any) -> dict[str, Any]:
    """Find the padding with which a convolution computes what a layer does."""
    stride, reach = twin.stride[0], twin.dilation[0] * (twin.kernel_size[0] - 1) + 1
    lengths = [reach + beyond for beyond in (*range(stride + 8), 100, 2**20, 2**40)]
    runs = [_Run(twin, *options) for options in product((1, 3), lengths, (True, False))]
    total = max((run.series.shape[2] - 1) * stride + reach - run.length for run in runs)
    (left, mode), *others = {(run.left, run.mode) for run in runs}
    ends = [(run.length + total - reach) // stride + 1 for run in runs]
    if others or ends != [run.series.shape[2] for run in runs]:
        raise ValueError("its padding depends on the input's shape or on train/eval mode")
    if not 0 <= left <= total:
        raise ValueError("it crops more than it pads")
    return {"padding": (left, total - left), "padding_mode": mode or "zeros"}


class _Run(TorchFunctionMode):
    """Run a layer's code, and follow the series, which it may only pad, convolve and crop."""

    def __init__(self, conv: Any, cases: int, length: int, training: bool) -> None:
        super().__init__()
        self.conv, self.own, self.length = conv, (conv.weight, conv.bias), length
        self.series = series = torch.empty(cases, conv.in_channels, length, device="meta")
        self.left, self.mode, self.whole, self.stride = 0, "", True, 0
        with torch.set_grad_enabled(training), self:
            y = type(conv).forward(conv.train(training), series)
        if y is not self.series or not self.stride:
            raise ValueError("it does not return the convolved series alone")

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _QUESTIONS:
            return function(*args, **kwargs)
        if function is Tensor.to and function(*args, **kwargs) is args[0]:  # it has that dtype
            return args[0]
        if function not in _FOLLOWED or not args or args[0] is not self.series:
            raise ValueError(f"it calls {resolve_name(function) or function.__name__}")
        y = function(*args, **kwargs)
        _FOLLOWED[function](self, y, *args[1:], **kwargs)
        self.series = y
        return y

    def pad(self, _: Any, pad: Any, mode: str = "constant", value: float | None = None) -> None:
        mode, plain = "zeros" if mode == "constant" else mode, len(pad) == 2 and min(pad) >= 0
        again = self.mode and not self.mode == mode == "zeros"  # only zeros can be added twice
        if not plain or again or value or not self.whole:
            raise ValueError("it pads as no padding_mode does")
        self.left, self.mode = self.left + pad[0], mode

    def convolve(
        self, _: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> None:  # fmt: skip
        conv, shape = self.conv, tuple(weight.shape)
        found = Geometry.of(shape, stride, padding, dilation, groups, "zeros")
        own = Geometry.of(shape, conv.stride, found.padding, conv.dilation, conv.groups, "zeros")
        if self.stride or found != own or weight is not self.own[0] or bias is not self.own[1]:
            raise ValueError("it convolves twice, or not with its own weight, bias and options")
        if any(found.padding):
            self.pad(None, found.padding)
        self.stride, self.whole = found.stride, False

    def crop(self, y: Tensor, *_: Any) -> None:
        x = self.series
        if not y._is_view() or (y.shape[:2], y.stride()) != (x.shape[:2], x.stride()):
            raise ValueError("it takes other samples than those of a range of time")
        self.left -= int(y.storage_offset() - x.storage_offset()) * (self.stride or 1)
        self.whole = False


_FOLLOWED: dict[Any, Any] = {
    F.pad: _Run.pad,
    F.conv1d: _Run.convolve,
    **dict.fromkeys((Tensor.__getitem__, Tensor.narrow, torch.narrow), _Run.crop),
    Tensor.contiguous: lambda *_, **__: None,
}
