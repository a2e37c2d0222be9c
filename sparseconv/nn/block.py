"""A sequence of modules that takes fewer passes over memory where nobody can tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.functional.fused import batch_norm_relu, conv1x1, runs_eagerly, runs_here
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.hooks import has_own_code
from sparseconv.ops.backends import extension, resolve_backend

# From these sizes on the kernels win, and what they lose below is some 20 us of Python. Times of
# forward and backward over torch's, one thread of an AMD EPYC (Zen 5), 141 channels in, cold:
#   (N, L)          (1, 24)  (5, 24)  (16, 24)  (1, 128)  (16, 128)  (16, 512)
#   1x1 to 47          0.73     1.35      2.13      1.20       2.02       1.69
#   1x1 to 2           0.78     0.82      3.37      0.67       3.32       2.57
#   BatchNorm, ReLU    0.78     1.01      1.47      1.16       2.33       2.23
CONV_POSITIONS = 512  # N * L
CONV_MACS = 600_000  # or so many multiply-adds
NORM_ELEMENTS = 16_384  # N * C * L


class Block(nn.Sequential):
    """``nn.Sequential`` around a ``SparseConv1d``, with faster ways through its neighbours.

    A 1x1 ``nn.Conv1d``, and in training an ``nn.BatchNorm1d`` followed by ``nn.ReLU``, are computed
    by ``functional.fused`` when the backend is the C++ kernels on AVX2 or better, the input is
    large enough for that to be faster, and the outcome is the same: modules of exactly these types,
    without hooks, on float32 or float64 CPU tensors, outside torch.compile, autocast and
    torch.func. Everything else runs module by module.

    Args:
        modules: as for ``nn.Sequential``.
        backend: as in ``sparse_conv1d``; None takes that of the ``SparseConv1d`` among the modules,
            and without one runs module by module.

    Example:
        >>> import torch
        >>> from collections import OrderedDict
        >>> norm = nn.BatchNorm1d(3)
        >>> block = Block(OrderedDict(conv=SparseConv1d(2, 3, 5), norm=norm, relu=nn.ReLU()))
        >>> block(torch.zeros(4, 2, 9)).shape
        torch.Size([4, 3, 5])
    """

    def __init__(self, *modules: Any, backend: str | None = None) -> None:
        super().__init__(*modules)
        self.backend = backend

    def __getitem__(self, index: int | slice) -> Any:
        """A module, or a block of some of them that keeps the backend."""
        part: Any = super().__getitem__(index)
        if isinstance(index, slice):
            part.backend = self.backend
        return part

    def forward(self, input: Tensor) -> Tensor:
        """Run the modules in their order."""
        if not runs_eagerly():
            return super().forward(input)  # type: ignore[no-any-return, no-untyped-call]
        return self._through(list(self._modules.values()), input)

    def _through(self, modules: list[nn.Module], x: Tensor) -> Tensor:
        """Run these modules of the block, where nothing traces, casts or transforms."""
        ready: bool | None = None  # asked only where there is something to gain
        i = 0
        while i < len(modules):
            module = modules[i]
            fused = _fusable(modules, i, x)
            if fused and ready is None:
                ready = runs_here(x) and self._pays(x.device)
            if fused and ready:
                if isinstance(module, nn.Conv1d):
                    x = conv1x1(x, module.weight)
                else:
                    assert isinstance(module, nn.BatchNorm1d)
                    x = batch_norm_relu(x, module)
                i += fused
            else:
                x = module(x)
                i += 1
        return x

    def _pays(self, device: torch.device) -> bool:
        backend = self.backend
        for module in self._modules.values():
            if backend is None and isinstance(module, SparseConv1d):
                backend = module.backend
        if backend is None or resolve_backend(backend, device) != "cpp" or extension is None:
            return False
        # Without the instruction a multiply-add is imitated, bit for bit: 30 to 100 times slower.
        return bool(extension.isa() != "baseline")


def _fusable(modules: list[nn.Module], i: int, x: Tensor) -> int:
    """How many modules, from this one on, one kernel can replace."""
    module = modules[i]
    if type(x) is not Tensor and type(x) is not nn.Parameter:
        return 0
    if type(module) is nn.Conv1d:
        return int(_is_1x1(module, x) and not has_own_code(module))
    norm_then_relu = (
        type(module) is nn.BatchNorm1d
        and module.training
        and x.numel() >= NORM_ELEMENTS
        and i + 1 < len(modules)
        and type(modules[i + 1]) is nn.ReLU
        and not has_own_code(module)
        and not has_own_code(modules[i + 1])
    )
    return 2 if norm_then_relu else 0


def _is_1x1(conv: nn.Conv1d, x: Tensor) -> bool:
    """Whether ``conv1x1`` computes what the layer does on ``x``, and faster."""
    positions = x.numel() // conv.in_channels
    return (
        conv.kernel_size == (1,)
        and conv.stride == (1,)
        and conv.groups == 1
        and conv.bias is None
        and (conv.padding == (0,) or conv.padding in ("same", "valid"))
        and (
            positions >= CONV_POSITIONS
            or positions * conv.in_channels * conv.out_channels >= CONV_MACS
        )
    )
