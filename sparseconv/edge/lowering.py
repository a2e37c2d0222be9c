"""From PyTorch's modules to the layers of the C program; what has no such layer is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sparseconv.core.geometry import Geometry
from sparseconv.edge.layers import Array, Layer, Network
from sparseconv.models.dsn import DSN
from sparseconv.nn.block import leaves
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.pooling import ShortAvgPool1d, new_averaging_matrix
from sparseconv.nn.state import current

_PADS: dict[type[nn.Module], str] = {
    nn.ZeroPad1d: "zeros",
    nn.ReplicationPad1d: "replicate",
    nn.ReflectionPad1d: "reflect",
    nn.CircularPad1d: "circular",
}
_SUPPORTED = (
    "SparseConv1d, Conv1d, Linear, BatchNorm1d, ReLU, AdaptiveAvgPool1d, Flatten, Dropout, "
    "Identity, a padding layer before a convolution, and at the end LogSoftmax or Softmax; in a "
    "DSN or in Sequentials"
)


@torch.no_grad()
def lower(model: nn.Module, channels: int, length: int) -> Network:
    """Translate a model in eval mode for series ``(channels, length)``.

    Raises:
        NotImplementedError: a module that the C program has no layer for, by its name.
        ValueError: a module in training mode, or weights that are not finite.
        RuntimeError: series that the model does not take.
    """
    names = {module: name for name, module in model.named_modules()}
    sequences = [model.blocks, model.head] if type(model) is DSN else [model]
    modules = [module for sequence in sequences for module in leaves(sequence)]
    for module in names:
        if module.training:
            raise ValueError(
                f"expected a model in eval mode, but {_named(names, module)} is in training mode; "
                "call model.eval()"
            )
        if _hooked(module):
            raise _unsupported(names, module, "it has hooks or a forward of its own")
        if module in modules and type(module) not in _LOWERINGS:
            raise _unsupported(names, module)
    model(torch.zeros(1, channels, length))  # PyTorch refuses what does not fit together
    state = _State(channels, length)
    for module in modules:
        if state.ending:
            raise _unsupported(names, module, f"it follows the {state.ending} that ends the model")
        if state.pads and not isinstance(module, nn.Conv1d | SparseConv1d):
            raise _unsupported(names, module, "it follows a padding layer")
        if isinstance(module, _OF_FEATURES if state.features is None else _OF_CHANNELS):
            got = "channels" if state.features is None else "features"
            raise _unsupported(names, module, f"it gets {got}; nn.Flatten() makes features of them")
        try:
            with np.errstate(all="ignore"):  # whether the weights are finite is checked here
                _LOWERINGS[type(module)](state, module)
                last = [part for layer in state.layers[-1:] for part in (layer.weight, layer.bias)]
                if not all(np.isfinite(part.astype(np.float32)).all() for part in last):
                    raise ValueError("expected weights that are finite in float32; train it anew")
        except ValueError as error:
            raise ValueError(f"{_named(names, module)}: {error}") from error
    if not state.layers or state.pads:
        raise ValueError("expected a network that ends with weights, but after its last padding "
                         "layer, or as a whole, it has none")  # fmt: skip
    if state.features is None:
        raise ValueError(
            f"expected a model that gives scores (n_cases, n_classes), but this one ends with "
            f"(n_cases, {state.channels}, {state.length}); end it with nn.Flatten()"
        )
    layers = _averages_first(state.layers)
    layers[-1] = _in_order(layers[-1], state.features)
    return Network((channels, length), layers, state.ending)


def _named(names: dict[nn.Module, str], module: nn.Module) -> str:
    which = f"module {names[module]!r}" if names[module] else "the model"
    return f"{which} ({type(module).__name__})"


def _unsupported(
    names: dict[nn.Module, str], module: nn.Module, reason: str = ""
) -> NotImplementedError:
    return NotImplementedError(
        f"{_named(names, module)} cannot be exported to C{': ' + reason if reason else ''}; "
        f"supported are {_SUPPORTED}"
    )


def _hooked(module: nn.Module) -> bool:
    """Tell whether a call does more than its class does; pruning's hooks compute the weights."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    own = any(not isinstance(hook, prune.BasePruningMethod) for hook in hooks)
    return own or "forward" in vars(module)


@dataclass
class _State:
    """The layers so far, and what comes out of them."""

    channels: int
    length: int
    layers: list[Layer] = field(default_factory=list)
    features: Array | None = None  # once flattened: where in memory each feature lies
    pads: tuple[tuple[int, int], str] | None = None
    ending: str = ""

    def add(self, layer: Layer) -> None:
        self.layers.append(layer)
        rows, positions = layer.rows, layer.positions
        self.length, self.channels = (rows, positions) if layer.over_time else (positions, rows)

    def each_channel(self, kind: str, scale: Array, shift: Array) -> Layer:
        """Return a layer that scales and shifts each channel, or each feature."""
        channels = len(scale)
        length = self.length * self.channels // channels
        eye = np.eye(channels, dtype=bool)
        return Layer(kind, eye * scale, eye, np.arange(channels), shift, channels, length, length,
                     channels)  # fmt: skip


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().cpu().numpy()
    return array


def _worth_storing(weight: Array) -> Array:
    """Choose what to store of a dense layer: all, or what is not zero if that is less than half."""
    active: Array = weight != 0
    return active if 2 * active.sum() < active.size else np.ones_like(active)


def _convolution(state: _State, conv: SparseConv1d | nn.Conv1d) -> None:
    if isinstance(conv, SparseConv1d):
        active = conv.pattern.to_mask()
        weight = torch.zeros(active.shape, dtype=torch.float64)
        weight[active] = current(conv, "values").detach().double().cpu()
    else:
        weight = current(conv, "weight").detach().double().cpu()
        active = torch.from_numpy(_worth_storing(weight.numpy()))
    rows, group_channels, taps = weight.shape
    padding: Any = conv.padding
    geometry = Geometry.of((rows, group_channels, taps), conv.stride, padding, conv.dilation,
                           conv.groups, conv.padding_mode)  # fmt: skip
    if state.pads is not None:
        if any(geometry.padding):
            raise ValueError("a padding layer precedes a convolution that pads its input itself")
        geometry = geometry._replace(padding=state.pads[0], padding_mode=state.pads[1])
        state.pads = None

    # (rows, taps, channels): the window of one output, as it lies in memory.
    def window(part: Tensor) -> Array:
        wide = part.new_zeros(rows, taps, state.channels)
        for row in range(rows):
            first = row // (rows // conv.groups) * group_channels
            wide[row, :, first : first + group_channels] = part[row].T
        array: Array = wide.reshape(rows, -1).numpy()
        return array

    tap = np.arange(taps)[:, None] * geometry.dilation * state.channels
    bias = np.zeros(rows) if conv.bias is None else _numpy(current(conv, "bias"))
    kind = "sparse convolution" if isinstance(conv, SparseConv1d) else "convolution"
    state.add(Layer(
        f"{kind}, {taps} tap{'s' if taps > 1 else ''}", window(weight), window(active),
        (tap + np.arange(state.channels)).ravel(), bias, geometry.stride * state.channels,
        geometry.output_length(state.length), state.length, state.channels, geometry.padding,
        geometry.padding_mode,
    ))  # fmt: skip


def _pad(state: _State, module: Any) -> None:
    left, right = module.padding
    if min(left, right) < 0:
        raise ValueError(f"expected padding that is not negative, but got {(left, right)}")
    state.pads = (left, right), _PADS[type(module)]


def _linear(state: _State, linear: nn.Linear) -> None:
    weight = np.empty(linear.weight.shape)
    weight[:, state.features] = _numpy(current(linear, "weight"))
    active = _worth_storing(weight)
    bias = np.zeros(len(weight)) if linear.bias is None else _numpy(current(linear, "bias"))
    inputs = np.arange(linear.in_features)
    state.add(Layer("linear", weight, active, inputs, bias, len(inputs), 1, 1, len(inputs)))
    state.features = np.arange(linear.out_features)


def _norm(state: _State, norm: nn.BatchNorm1d) -> None:
    """Fold a BatchNorm into the layer before it, if that is possible."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("expected a BatchNorm with running statistics; it computes its own")
    scale = 1 / np.sqrt(_numpy(norm.running_var) + norm.eps)
    scale = scale if norm.weight is None else scale * _numpy(current(norm, "weight"))
    shift = -_numpy(norm.running_mean) * scale
    shift = shift if norm.bias is None else shift + _numpy(current(norm, "bias"))
    if state.features is not None:
        by_feature = scale, shift
        scale, shift = np.empty((2, norm.num_features))
        scale[state.features], shift[state.features] = by_feature
    last = state.layers[-1] if state.layers else None
    if last is None or last.relu or last.over_time or last.rows != norm.num_features:
        state.layers.append(state.each_channel("BatchNorm", scale, shift))
    else:
        weight, bias = last.weight * scale[:, None], last.bias * scale + shift
        state.layers[-1] = replace(last, weight=weight, bias=bias)


def _relu(state: _State, module: nn.ReLU) -> None:
    if not state.layers:
        ones = np.ones(state.channels)
        state.layers.append(state.each_channel("ReLU", ones, 0 * ones))
    state.layers[-1] = replace(state.layers[-1], relu=True)


def _pool(state: _State, pool: nn.AdaptiveAvgPool1d) -> None:
    size: Any = pool.output_size
    bins = size[0] if isinstance(size, tuple) else size
    state.add(_averages(state.channels, _numpy(
        new_averaging_matrix(state.length, torch.float64, torch.device("cpu"), bins)
    ).T))  # fmt: skip


def _averages(channels: int, weight: Array) -> Layer:
    """Return a layer that averages over time by weights ``(bins, length)``."""
    bins, length = weight.shape
    kind = "mean over time" if bins == 1 else f"means of {bins} bins"
    return Layer(kind, weight, weight != 0, np.arange(length) * channels, np.zeros(bins), 1,
                 channels, length, channels, over_time=True, rows_whole=True)  # fmt: skip


def _flatten(state: _State, module: nn.Flatten) -> None:
    if module.start_dim != 1 or module.end_dim != -1:
        raise ValueError("expected nn.Flatten() with its defaults")
    if state.features is None:
        channel, time = np.divmod(np.arange(state.channels * state.length), state.length)
        state.features = time * state.channels + channel


def _end(state: _State, module: nn.LogSoftmax | nn.Softmax) -> None:
    if module.dim not in (1, -1):
        raise ValueError(f"expected dim=1, but got {module.dim}")
    state.ending = "softmax" if isinstance(module, nn.Softmax) else "log_softmax"


def _nothing(state: _State, module: nn.Module) -> None:
    """Add nothing: in eval mode these modules return their input."""


_LOWERINGS: dict[type[nn.Module], Callable[[_State, Any], None]] = {
    SparseConv1d: _convolution,
    nn.Conv1d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.ReLU: _relu,
    nn.AdaptiveAvgPool1d: _pool,
    ShortAvgPool1d: _pool,
    nn.Flatten: _flatten,
    nn.LogSoftmax: _end,
    nn.Softmax: _end,
    nn.Dropout: _nothing,
    nn.Identity: _nothing,
    **dict.fromkeys(_PADS, _pad),
}


_OF_FEATURES: tuple[type[nn.Module], ...] = (nn.Linear, nn.LogSoftmax, nn.Softmax)
_OF_CHANNELS: tuple[type[nn.Module], ...] = (SparseConv1d, nn.Conv1d, nn.AdaptiveAvgPool1d, *_PADS)


def _in_order(last: Layer, features: Array) -> Layer:
    """Return the last layer with its results in the order of PyTorch's features."""
    if (features == np.arange(len(features))).all():
        return last
    if last.positions > 1:
        return replace(last, rows_whole=not last.rows_whole)
    return replace(last, weight=last.weight[features], active=last.active[features],
                   bias=last.bias[features])  # fmt: skip


def _averages_first(layers: list[Layer]) -> list[Layer]:
    """Move averages before 1x1 convolutions, which then have fewer positions, and merge them."""
    layers = list(layers)
    for _ in range(len(layers)):
        for at in range(1, len(layers)):
            before, after = layers[at - 1 : at + 1]
            bins = len(after.weight)
            if not after.over_time or before.relu:
                continue
            if before.over_time:
                merged = _averages(before.channels, after.weight @ before.weight)
                layers[at - 1 : at + 1] = [replace(merged, relu=after.relu)]
                break
            if before.is_pointwise and bins <= after.length:
                first = _averages(before.channels, after.weight)
                second = replace(before, positions=bins, length=bins, relu=after.relu)
                layers[at - 1 : at + 1] = [first, second]
    return layers
