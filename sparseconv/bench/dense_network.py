"""The dense network's inference at PyTorch's best settings: all ways to run it, the best is kept.

Which of them is fastest depends on the length and the machine, so every one is tried on the very
series that are timed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sparseconv import SparseConv1d
from sparseconv.bench.masked_dense import masked_copy
from sparseconv.models import DSN

Network = Callable[[Tensor], Tensor]


def inference_variants(model: DSN, x: Tensor) -> dict[str, Callable[[], Network]]:
    """Makers of the dense twin of ``model`` in eval mode; ``x (N, C, L)`` is what it will be given.

    ``plain`` is the network as mask-based training leaves it. ``jit`` is traced, frozen and
    optimized by TorchScript, which folds BatchNorm and packs weights for oneDNN. ``channels_last``
    runs 2-D convolutions of height 1 over channels-last memory, oneDNN's fastest layout here, with
    BatchNorm folded; ``channels_last jit`` is both. ``compiled`` is not among them: it is a rival of
    its own.

    Example:
        >>> variants = inference_variants(DSN(1, 2, nf=2, kernel_size=3, depth=2), torch.ones(1, 1, 8))
        >>> sorted(variants)
        ['channels_last', 'channels_last jit', 'jit', 'plain']
    """  # noqa: E501

    def plain() -> nn.Module:
        return masked_copy(model).eval()

    def channels_last() -> nn.Module:
        return _as_conv2d(model).eval()

    return {
        "plain": plain,
        "jit": lambda: _scripted(plain(), x),
        "channels_last": channels_last,
        "channels_last jit": lambda: _scripted(channels_last(), x),
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


class _ToChannelsLast(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.unsqueeze(2).to(memory_format=torch.channels_last)


class _FromChannelsLast(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.squeeze(2).contiguous()


def _as_conv2d(model: DSN) -> nn.Sequential:
    """The same function, its blocks on ``(N, C, 1, L)`` in channels-last memory, norms folded."""
    layers: list[nn.Module] = [_ToChannelsLast()]
    for layer in (layer for block in model.blocks for layer in block):  # type: ignore[attr-defined]
        if isinstance(layer, nn.BatchNorm1d):
            conv = layers.pop()
            assert isinstance(conv, nn.Conv2d)
            layers.append(fuse_conv_bn_eval(conv.eval(), _norm2d(layer)))
        elif isinstance(layer, SparseConv1d):
            left, right = layer.resolved_padding
            pad = nn.ZeroPad2d if layer.padding_mode == "zeros" else nn.ReplicationPad2d
            layers.append(pad((left, right, 0, 0)))
            layers.append(_conv2d(layer.dense_weight(), layer.bias))
        elif isinstance(layer, nn.Conv1d):
            layers.append(_conv2d(layer.weight, layer.bias))
        else:
            layers.append(nn.ReLU(inplace=True))
    layers += [_FromChannelsLast(), *copy.deepcopy(model.head)]
    network = nn.Sequential(*layers).requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return network


def _conv2d(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    out_channels, in_channels, taps = weight.shape
    conv = nn.Conv2d(in_channels, out_channels, (1, taps), bias=bias is not None)
    with torch.no_grad():
        conv.weight.copy_(weight.unsqueeze(2))
        if bias is not None and conv.bias is not None:
            conv.bias.copy_(bias)
    return conv


def _norm2d(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    twin = nn.BatchNorm2d(norm.num_features, norm.eps)
    twin.load_state_dict(norm.state_dict())
    return twin.eval()
