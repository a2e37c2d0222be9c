"""From PyTorch's modules to the layers of the C program; what has no such layer is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseconv.core.geometry import Geometry
from sparseconv.edge.layers import Array, Layer, Network
from sparseconv.models.dsn import DSN
from sparseconv.nn.block import leaves
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.modules import hooks_of
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.nn.state import current

_PADS: dict[type[nn.Module], str] = {
    nn.ZeroPad1d: "zeros",
    nn.ReplicationPad1d: "replicate",
    nn.ReflectionPad1d: "reflect",
    nn.CircularPad1d: "circular",
}


@torch.no_grad()
def lower(model: nn.Module, channels: int, length: int) -> Network:
    """Translate a model in eval mode for series ``(channels, length)``.

    Raises:
        NotImplementedError: a module that the C program has no layer for, by its name.
        ValueError: a module in training mode, weights that are not finite, or no scores.
        RuntimeError: series that the model does not take.
    """
    names = {module: name for name, module in model.named_modules()}
    sequences = [model.blocks, model.head] if type(model) is DSN else [model]
    modules = [module for sequence in sequences for module in leaves(sequence)]
    for module, name in names.items():
        with _naming(name, module):
            if module.training:
                raise ValueError("expected a model in eval mode; call model.eval()")
            if hooks_of(module) or "forward" in vars(module):
                raise NotImplementedError("it has hooks or a forward of its own")
            if module in modules and type(module) not in _LOWERINGS:
                raise NotImplementedError("it has no counterpart there")
    model(torch.zeros(1, channels, length))  # PyTorch refuses what does not fit together
    state = _State(channels, length)
    for module in modules:
        with _naming(names[module], module), np.errstate(all="ignore"):  # the scores are checked
            state.lower(module)
            for part in ("weight", "bias") if state.layers else ():
                if not np.isfinite(getattr(state.layers[-1], part).astype(np.float32)).all():
                    raise ValueError(
                        f"expected a finite {part}, but float32 has infinity or NaN; train it anew"
                    )
    if state.features is None:
        raise ValueError(
            f"expected a model that gives scores (n_cases, n_classes), but this one ends with "
            f"(n_cases, {state.channels}, {state.length}); end it with nn.Flatten()"
        )
    if not state.layers:
        raise ValueError("expected a network that computes something, but it has no such layer")
    layers = _averages_first(state.layers)
    layers[-1] = _in_order(layers[-1], state.features)
    return Network((channels, length), layers, state.ending)


@contextlib.contextmanager
def _naming(name: str, module: nn.Module) -> Iterator[None]:
    """Name the module in the errors of the block."""
    which = f"{f'module {name!r}' if name else 'the model'} ({type(module).__name__})"
    try:
        yield
    except NotImplementedError as error:
        supported = ", ".join(kind.__name__ for kind in _LOWERINGS)
        raise NotImplementedError(
            f"{which} cannot be exported to C: {error}; supported are, in a DSN or in Sequentials, "
            f"{supported}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{which}: {error}") from error


@dataclass
class _State:
    """The layers so far, and what comes out of them; features are channels of length 1."""

    channels: int
    length: int
    layers: list[Layer] = field(default_factory=list)
    features: Array | None = None  # once flattened: where in memory each feature lies
    pads: tuple[tuple[int, int], str] | None = None
    ending: str = ""

    def lower(self, module: nn.Module) -> None:
        """Add what a module computes."""
        if self.ending:
            raise NotImplementedError(f"it follows the {self.ending} that ends the model")
        if self.pads and not isinstance(module, nn.Conv1d | SparseConv1d):
            raise NotImplementedError("it follows a padding layer")
        if isinstance(module, _OF_FEATURES if self.features is None else _OF_CHANNELS):
            got = "channels" if self.features is None else "features"
            raise NotImplementedError(f"it gets {got}; nn.Flatten() makes features of them")
        _LOWERINGS[type(module)](self, module)

    def add(self, layer: Layer) -> None:
        self.layers.append(layer)
        rows, positions = layer.rows, layer.positions
        self.length, self.channels = (rows, positions) if layer.over_time else (positions, rows)

    def add_each_channel(self, kind: str, scale: Array, shift: Array) -> None:
        """Add a layer that scales and shifts each channel."""
        eye = np.eye(self.channels, dtype=bool)
        self.add(Layer(
            kind=kind, weight=eye * scale, active=eye, offsets=np.arange(self.channels), bias=shift,
            step=self.channels, positions=self.length, length=self.length, channels=self.channels,
        ))  # fmt: skip


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().cpu().numpy()
    return array


def _worth_storing(weight: Array) -> Array:
    """Choose what to store of a dense layer: all, or what is not zero if that is less than half."""
    active: Array = weight != 0
    return active if 2 * active.sum() < active.size else np.ones_like(active)


def _convolution(state: _State, conv: SparseConv1d | nn.Conv1d) -> None:
    if isinstance(conv, SparseConv1d):
        active: Array = conv.pattern.to_mask().cpu().numpy()
        weight: Array = np.zeros(active.shape)
        weight[active] = _numpy(current(conv, "values"))
    else:
        weight = _numpy(current(conv, "weight"))
        active = _worth_storing(weight)
    rows, group_channels, taps = weight.shape
    padding: Any = conv.padding
    geometry = Geometry.of(weight.shape, conv.stride, padding, conv.dilation, conv.groups,
                           conv.padding_mode)  # fmt: skip
    if state.pads is not None:
        if any(geometry.padding):
            raise ValueError("a padding layer precedes a convolution that pads its input itself")
        geometry = geometry._replace(padding=state.pads[0], padding_mode=state.pads[1])
        state.pads = None
    # (rows, 1, group_channels): the channels that each row reads.
    read = np.arange(rows)[:, None, None] // (rows // conv.groups) * group_channels
    read = read + np.arange(group_channels)

    def window(part: Array) -> Array:
        """Arrange ``(rows, group_channels, taps)`` as the samples of an output lie in memory."""
        wide = np.zeros((rows, taps, state.channels), part.dtype)
        np.put_along_axis(wide, read, part.transpose(0, 2, 1), axis=2)
        return wide.reshape(rows, -1)

    tap = np.arange(taps)[:, None] * geometry.dilation * state.channels
    kind = "sparse convolution" if isinstance(conv, SparseConv1d) else "convolution"
    state.add(Layer(
        kind=f"{kind}, {taps} tap{'s' if taps > 1 else ''}", weight=window(weight),
        active=window(active), offsets=(tap + np.arange(state.channels)).ravel(),
        bias=_bias(conv, rows), step=geometry.stride * state.channels,
        positions=geometry.output_length(state.length), length=state.length,
        channels=state.channels, padding=geometry.padding, padding_mode=geometry.padding_mode,
    ))  # fmt: skip


def _bias(module: Any, rows: int) -> Array:
    return np.zeros(rows) if module.bias is None else _numpy(current(module, "bias"))


def _pad(state: _State, module: Any) -> None:
    if min(module.padding) < 0:
        raise ValueError(f"expected padding that is not negative, but got {module.padding}")
    state.pads = module.padding, _PADS[type(module)]


def _linear(state: _State, linear: nn.Linear) -> None:
    weight = np.empty(linear.weight.shape)
    weight[:, state.features] = _numpy(current(linear, "weight"))
    rows, inputs = weight.shape
    state.add(Layer(
        kind="linear", weight=weight, active=_worth_storing(weight), offsets=np.arange(inputs),
        bias=_bias(linear, rows), step=inputs, positions=1, length=1, channels=inputs,
    ))  # fmt: skip
    state.features = np.arange(rows)


def _norm(state: _State, norm: nn.BatchNorm1d) -> None:
    """Fold a BatchNorm into the layer before it, if that is possible."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("expected a BatchNorm with running statistics; it computes its own")
    scale = 1 / np.sqrt(_numpy(norm.running_var) + norm.eps)
    scale = scale if norm.weight is None else scale * _numpy(current(norm, "weight"))
    shift = -_numpy(norm.running_mean) * scale
    shift = shift if norm.bias is None else shift + _numpy(current(norm, "bias"))
    if state.features is not None:
        place = state.features.argsort()
        scale, shift = scale[place], shift[place]
    last = state.layers[-1] if state.layers else None
    if last is None or last.relu or last.over_time or last.rows != norm.num_features:
        state.add_each_channel("BatchNorm", scale, shift)
    else:
        weight, bias = last.weight * scale[:, None], last.bias * scale + shift
        state.layers[-1] = replace(last, weight=weight, bias=bias)


def _relu(state: _State, module: nn.ReLU) -> None:
    if not state.layers:
        state.add_each_channel("ReLU", np.ones(state.channels), np.zeros(state.channels))
    state.layers[-1] = replace(state.layers[-1], relu=True)


def _pool(state: _State, pool: nn.AdaptiveAvgPool1d) -> None:
    weight = _numpy(pool(torch.eye(state.length, dtype=torch.float64))).T  # what each sample counts
    state.add(_averages(state.channels, weight))


def _averages(channels: int, weight: Array) -> Layer:
    """Return a layer that averages over time by weights ``(bins, length)``."""
    bins, length = weight.shape
    return Layer(
        kind="mean over time" if bins == 1 else f"means of {bins} bins", weight=weight,
        active=weight != 0, offsets=np.arange(length) * channels, bias=np.zeros(bins), step=1,
        positions=channels, length=length, channels=channels, over_time=True, rows_whole=True,
    )  # fmt: skip


def _flatten(state: _State, module: nn.Flatten) -> None:
    if module.start_dim != 1 or module.end_dim != -1:
        raise ValueError("expected nn.Flatten() with its defaults")
    if state.features is None:
        channel, time = np.divmod(np.arange(state.channels * state.length), state.length)
        state.features = time * state.channels + channel
        state.channels, state.length = len(state.features), 1


def _end(state: _State, module: nn.LogSoftmax | nn.Softmax) -> None:
    if module.dim not in (1, -1):
        raise ValueError(f"expected dim=1, but got {module.dim}")
    state.ending = "softmax" if isinstance(module, nn.Softmax) else "log_softmax"


_LOWERINGS: dict[type[nn.Module], Callable[[_State, Any], None]] = {
    **dict.fromkeys((SparseConv1d, nn.Conv1d), _convolution),
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.ReLU: _relu,
    **dict.fromkeys((nn.AdaptiveAvgPool1d, ShortAvgPool1d), _pool),
    nn.Flatten: _flatten,
    **dict.fromkeys((nn.LogSoftmax, nn.Softmax), _end),
    # In eval mode these return their input.
    **dict.fromkeys((nn.Dropout, nn.Identity), lambda state, module: None),
    **dict.fromkeys(_PADS, _pad),
}
# Which of them cannot get channels, and which no features.
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
