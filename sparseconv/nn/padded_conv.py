"""Find what a subclass of ``nn.Conv1d`` computes if it only pads, convolves and crops."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from sparseconv.nn.modules import computes_as, deepcopy_model
from sparseconv.nn.state import shared_options

# Magnitudes of test weights. Their products with the integers of a test series are exact in
# float64, as are sums of these in any order. A layer that computes anything else gives other bits.
_SIZES = torch.tensor([2.0**power for power in range(-13, 14)], dtype=torch.float64)
_MODES = {"zeros": "constant", **{mode: mode for mode in ("replicate", "reflect", "circular")}}
REMEDY = (
    "copy its weight and bias into an nn.Conv1d, and move its other code into a module around it"
)

# What a layer of the class nn.Conv1d has, pruned or not.
KNOWN = {"weight", "bias", "weight_orig", "weight_mask", "parametrizations"}
KNOWN |= vars(nn.Conv1d(1, 1, 1, device="meta")).keys()


def convolution_of(conv: nn.Conv1d) -> dict[str, Any]:
    """Return the arguments of a ``SparseConv1d`` that computes what ``conv`` does.

    Raises:
        TypeError: the layer does more than pad, convolve and crop, or its padding varies.
    """
    kind, own = type_before_parametrizations(conv), vars(conv).keys() & {"forward", "_conv_forward"}
    if computes_as(conv, (nn.Conv1d,)) and not own:
        return shared_options(conv) | {"padding": conv.padding}
    # Run a copy on series of many lengths, in both modes, with weights of many sizes: a layer that
    # prunes, limits or scales weights gives other outputs than a convolution.
    try:
        if own or kind.__call__ is not nn.Module.__call__:
            raise TypeError("it replaces forward, _conv_forward or __call__")
        if len(takes := inspect.signature(conv.forward).parameters) > 1:
            raise TypeError(
                f"its forward takes ({', '.join(takes)}), but must take only the series"
            )
        if state := [name for name in conv.state_dict() if name.split(".")[0] not in KNOWN]:
            raise TypeError(f"its forward may use {state[0]!r}, which would be lost")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return shared_options(conv) | _padding_of(_with_random_weights(conv, kind))
    except Exception as error:  # the layer's code may raise anything
        raise TypeError(
            f"conv must only pad, convolve and crop, but {kind.__name__} does more: {error}; "
            f"{REMEDY}"
        ) from None


def _with_random_weights(conv: Any, kind: Any) -> Any:
    """Copy a layer without its pruning and with random weights."""
    twin: Any = deepcopy_model(conv).to("cpu", torch.float64)
    twin.__class__ = kind
    sizes = {"weight": (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)}
    sizes |= {} if conv.bias is None else {"bias": (conv.out_channels,)}
    for name, size in sizes.items():
        vars(twin).pop(name, None)  # pruning's result would hide the parameter
        twin._parameters[name] = nn.Parameter(torch.empty(size, dtype=torch.float64))
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.is_floating_point():
            magnitudes = _SIZES[torch.randint(len(_SIZES), tensor.shape)]
            tensor.copy_(magnitudes * torch.randn_like(tensor).sign())
    return twin


def _padding_of(twin: Any) -> dict[str, Any]:
    """Find the padding with which a convolution computes what a layer does."""
    stride, reach = twin.stride[0], twin.dilation[0] * (twin.kernel_size[0] - 1) + 1
    lengths = [reach + beyond for beyond in (*range(stride + 8), 100, 257)]
    runs = [_run(twin, length, training) for length in lengths for training in (True, False)]
    total = max((y.shape[2] - 1) * stride + reach - x.shape[2] for x, y in runs)
    if total < 0:
        raise TypeError("it crops more than it pads")

    def convolve(x: Tensor, left: int, right: int, mode: str, stride: int) -> Tensor:
        padded = F.pad(x, (left, right), _MODES[mode])
        return F.conv1d(padded, twin.weight, twin.bias, stride, 0, twin.dilation, twin.groups)

    x, y = runs[-1]
    fits_one = False
    for mode in _MODES:
        whole = convolve(x, total, total, mode, 1)
        for left in range(total + 1):
            end = total - left + y.shape[2] * stride
            if whole[..., total - left : end : stride].equal(y):
                if all(convolve(x, left, total - left, mode, stride).equal(y) for x, y in runs):
                    return {"padding": (left, total - left), "padding_mode": mode}
                fits_one = True
    depends = "its padding depends on the input length or on train/eval mode"
    raise TypeError(depends if fits_one else "it computes something else")


def _run(twin: Any, length: int, training: bool) -> tuple[Tensor, Tensor]:
    """Run the code of a layer's class, and return a series and its output."""
    x = 1.0 + torch.rand(1, twin.in_channels, length).argsort().double()  # all differ
    x *= torch.randn_like(x).sign()
    before = {name: (p, p.data_ptr(), p.clone()) for name, p in twin.named_parameters()}
    y = type(twin).forward(twin.train(training), x.clone())
    for name, now in twin.named_parameters():
        old, place, content = before[name]
        if now is not old or now.data_ptr() != place or not now.equal(content):
            raise TypeError(
                f"its forward pass overwrites {name}, as a max-norm constraint does; apply the "
                "constraint after each optimizer.step() instead"
            )
    if not isinstance(y, Tensor) or y.shape[:-1] != (1, twin.out_channels):
        raise TypeError("it does not return a tensor of shape (N, out_channels, L)")
    return x, y
