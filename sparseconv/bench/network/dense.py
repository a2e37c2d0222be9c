"""The dense network at PyTorch's best settings, to run and to train.

All ways pool short series by a matrix product, which beats torch's own pooling.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sparseconv.bench.network.masked import PremaskedConv1d, masked_copy
from sparseconv.models import DSN
from sparseconv.nn.pooling import ShortAvgPool1d, averaging_matrix

Network = Callable[[Tensor], Tensor]


def inference_variants(model: DSN, x: Tensor) -> dict[str, Callable[[], Network]]:
    """Makers of the dense twin of ``model`` in eval mode; ``x (N, C, L)`` is what it will be given.

    ``jit`` is traced, frozen and optimized by TorchScript, which folds BatchNorm and packs weights
    for oneDNN. ``channels_last jit`` is the same of ``as_images``. Which is faster depends on the
    length and the machine. ``torch.compile`` is a separate baseline.
    """
    return {
        "jit": lambda: _scripted(_with_fast_pool(masked_copy(model).eval()), x),
        "channels_last jit": lambda: _scripted(as_images(model, fold=True).eval(), x),
    }


def _scripted(network: nn.Module, x: Tensor) -> Network:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and shapes become constants
        traced = torch.jit.trace(network, x)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced)
        try:
            optimized: Network = torch.jit.optimize_for_inference(frozen)
            for _ in range(3):  # the executor profiles, then optimizes
                optimized(x)
        except RuntimeError:  # oneDNN's pooling wants lengths that 50 divides
            optimized = frozen
    return optimized


class _ToImages(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.unsqueeze(2).to(memory_format=torch.channels_last)


class _ToSeries(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.squeeze(2).contiguous()


class _MatrixPool(nn.AdaptiveAvgPool1d):
    def forward(self, input: Tensor) -> Tensor:
        length = input.shape[-1]
        if length > ShortAvgPool1d.LONGEST:
            return super().forward(input)
        return input @ averaging_matrix(length, input.dtype, input.device)


def _with_fast_pool(network: nn.Module) -> nn.Module:
    for name, module in list(network.named_modules()):
        if type(module) is nn.AdaptiveAvgPool1d and module.output_size != 1:
            network.set_submodule(name, _MatrixPool(module.output_size))
    return network


def as_images(model: DSN, *, fold: bool) -> nn.Sequential:
    """Build the same function, its blocks on ``(N, C, 1, L)`` in channels-last memory.

    To be trained with masks, or with the norms folded into the convolutions.
    """
    twin = _with_fast_pool(masked_copy(model))
    layers: list[nn.Module] = [_ToImages()]
    for layer in (layer for block in twin.blocks for layer in block):  # type: ignore[union-attr]
        if isinstance(layer, PremaskedConv1d):
            layer.weight.data, layer.mask = map(_taps_first, (layer.weight.data, layer.mask))
        elif isinstance(layer, nn.BatchNorm1d) and fold:
            layers[-1] = fuse_conv_bn_eval(layers[-1].eval(), layer.eval())  # type: ignore[type-var]
            continue
        elif isinstance(layer, nn.BatchNorm1d):
            norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
            norm.load_state_dict(layer.state_dict())
            layer = norm
        elif isinstance(layer, nn.Conv1d):
            layer = _pointwise(layer)
        layers.append(layer)
    head: nn.Sequential = twin.head  # type: ignore[assignment]
    return nn.Sequential(*layers, _ToSeries(), *head)


def _taps_first(weight: Tensor) -> Tensor:
    """The same ``(C_out, C_in, K)``, as channels-last memory holds ``(C_out, C_in, 1, K)``."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def _pointwise(conv: nn.Conv1d) -> nn.Conv2d:
    twin = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)
    state = conv.state_dict()
    twin.load_state_dict(state | {"weight": state["weight"].unsqueeze(2)})
    return twin
