"""The dense network at PyTorch's best settings: all ways to run and train it, the best is kept.

Which of them is fastest depends on the length and the machine, so every one is tried on the very
series that are timed. All pool short series by a matrix product, which torch's own pooling loses to.
"""  # noqa: E501

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sparseconv import SparseConv1d
from sparseconv.bench.network.masked import PremaskedConv1d, masked_copy
from sparseconv.models import DSN
from sparseconv.nn.pooling import ShortAvgPool1d, averaging_matrix

Network = Callable[[Tensor], Tensor]


def inference_variants(model: DSN, x: Tensor) -> dict[str, Callable[[], Network]]:
    """Makers of the dense twin of ``model`` in eval mode; ``x (N, C, L)`` is what it will be given.

    ``plain`` is the network as it was trained. ``jit`` is traced, frozen and
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
        return _with_fast_pool(masked_copy(model).eval())

    def channels_last() -> nn.Module:
        return _as_conv2d(model, fold=True).requires_grad_(False).eval()

    return {
        "plain": plain,
        "jit": lambda: _scripted(plain(), x),
        "channels_last": channels_last,
        "channels_last jit": lambda: _scripted(channels_last(), x),
    }


def training_variants(model: DSN) -> dict[str, Callable[[], nn.Module]]:
    """Makers of the masked-dense twin of ``model`` to train: as it is, and in channels-last memory.

    Both hold ``PremaskedConv1d``, so ``MaskedDST`` takes them.

    Example:
        >>> sorted(training_variants(DSN(1, 2, nf=2, kernel_size=3, depth=2)))
        ['channels_last', 'plain']
    """
    return {
        "plain": lambda: _with_fast_pool(masked_copy(model).train()),
        "channels_last": lambda: _as_conv2d(model, fold=False).train(),
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


class _MaskedConv2d(PremaskedConv1d):
    """The same on ``(N, C, 1, L)`` in channels-last memory, where its weight lies as well."""

    @classmethod
    def from_sparse(cls, layer: SparseConv1d) -> _MaskedConv2d:
        twin = super().from_sparse(layer)
        assert isinstance(twin, _MaskedConv2d)
        twin.weight.data = _taps_first(twin.weight.data)
        twin.mask = _taps_first(twin.mask)
        return twin

    def forward(self, input: Tensor) -> Tensor:
        (left, right), x, inside = self.padding, input, 0
        if self.padding_mode == "zeros" and left == right:  # one call pads by itself
            inside = left
        else:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, (left, right, 0, 0), mode)
        stride, dilation = (1, self.stride), (1, self.dilation)
        weight = self.weight.unsqueeze(2)
        return F.conv2d(x, weight, self.bias, stride, (0, inside), dilation, self.groups)


def _taps_first(weight: Tensor) -> Tensor:
    """The same ``(C_out, C_in, K)``, as channels-last memory holds ``(C_out, C_in, 1, K)``."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


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


def _as_conv2d(model: DSN, *, fold: bool) -> nn.Sequential:
    """The same function, its blocks on ``(N, C, 1, L)`` in channels-last memory.

    To be trained with masks, or with the masks gone and the norms folded.
    """
    twin = _with_fast_pool(masked_copy(model))
    layers: list[nn.Module] = [_ToChannelsLast()]
    originals = (layer for block in model.blocks for layer in block)  # type: ignore[attr-defined]
    for layer in originals:
        if isinstance(layer, SparseConv1d):
            layers.append(_MaskedConv2d.from_sparse(layer))
        elif isinstance(layer, nn.Conv1d):
            layers.append(_conv2d(layer.weight, layer.bias))
        elif isinstance(layer, nn.BatchNorm1d) and fold:
            conv = layers.pop()
            assert isinstance(conv, _MaskedConv2d)
            layers += _folded(conv, _norm2d(layer).eval())
        elif isinstance(layer, nn.BatchNorm1d):
            layers.append(_norm2d(layer))
        else:
            layers.append(nn.ReLU(inplace=True))
    head: nn.Sequential = twin.head  # type: ignore[assignment]
    return nn.Sequential(*layers, _FromChannelsLast(), *head)


def _folded(conv: _MaskedConv2d, norm: nn.BatchNorm2d) -> list[nn.Module]:
    """Padding, and the convolution with the norm in its weight and bias."""
    left, right = conv.padding
    pad = nn.ZeroPad2d if conv.padding_mode == "zeros" else nn.ReplicationPad2d
    plain = _conv2d(conv.weight, conv.bias).eval()
    folded = fuse_conv_bn_eval(plain, norm)
    folded.weight.data = folded.weight.data.to(memory_format=torch.channels_last)
    return [pad((left, right, 0, 0)), folded]


def _conv2d(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    out_channels, in_channels, taps = weight.shape
    conv = nn.Conv2d(in_channels, out_channels, (1, taps), bias=bias is not None)
    with torch.no_grad():
        conv.weight.copy_(weight.unsqueeze(2))
        if bias is not None and conv.bias is not None:
            conv.bias.copy_(bias)
    conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last)
    return conv


def _norm2d(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    twin = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    twin.load_state_dict(norm.state_dict())
    return twin
