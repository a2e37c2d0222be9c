"""Compute consecutive layers as one autograd function, on tensors in the kernels' own order.

In this order, a series is not contiguous: series, or pieces of them, are interleaved in vectors of
64 bytes (``csrc/cpu/plan/lane_order.h``). Strided tensors cannot express this order, so a chain
converts its input and output, and hides its intermediate tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.functional.conv import convolve
from sparseconv.ops.backends import extension

CHAIN_DTYPES = (torch.float32, torch.float64)
UNSHARED = "kernels of 16 x 16 channels have different taps; use block_mask and block=16"
UNFIT = "groups cut blocks of 16 channels, or there are too many channels and taps for the caches"


def runs_eagerly() -> bool:
    """Return whether torch runs without a tracer, mode, transform or forward-mode derivative."""
    casts = torch.is_autocast_enabled("cpu")  # a chain can follow it to bfloat16 only
    if torch.compiler.is_compiling() or extension is None:
        return False
    return bool(extension.runs_plainly(casts)) and (not casts or _casts_to_bfloat16())


def in_rows(x: Tensor) -> bool:
    """Return whether a chain for ``x`` computes in bfloat16, in the order of tiles."""
    casts = torch.is_autocast_enabled("cpu")
    if casts:
        return x.dtype in (torch.float32, torch.bfloat16) and _casts_to_bfloat16()
    return x.dtype == torch.bfloat16 and extension is not None and extension.has_block_kernels()


def _casts_to_bfloat16() -> bool:
    assert extension is not None
    dtype = torch.get_autocast_dtype("cpu")
    return dtype == torch.bfloat16 and bool(extension.has_block_kernels())


class Conv(NamedTuple):
    """Describe a sparse convolution that keeps the length, with or without ReLU."""

    values: Tensor
    bias: Tensor | None
    pattern: KernelCSR
    geometry: Geometry
    relu: bool = False

    def add_to(self, chain: Any) -> None:
        arrays = self.pattern.crow_indices, self.pattern.col_indices
        chain.add_conv(*arrays, self.geometry, self.relu)


class Pointwise(NamedTuple):
    """Describe a dense convolution with one tap; its weight is ``(C_out, C_in, 1)``."""

    weight: Tensor
    bias: Tensor | None = None

    def add_to(self, chain: Any) -> None:
        chain.add_pointwise()


class NormRelu(NamedTuple):
    """Describe ``nn.BatchNorm1d`` followed by ReLU; training mode updates the statistics.

    In eval mode, with the running statistics, it runs only while no gradients are recorded.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float | None  # None averages over all batches
    eps: float
    training: bool = True
    num_batches_tracked: Tensor | None = None

    def add_to(self, chain: Any) -> None:
        chain.add_norm_relu(self.eps, self.training)


Stage = Conv | Pointwise | NormRelu  # each begins with a weight, and a bias or None


def fits_rows(pattern: KernelCSR, geometry: Geometry) -> bool:
    """Return whether block kernels can compute the pattern, or the taps of its one channel."""
    assert extension is not None
    return bool(extension.fits_rows(pattern.crow_indices, pattern.col_indices, geometry))


def rounds_float32() -> bool:
    """Return whether torch lets its own CPU convolutions round float32 to bfloat16."""
    unit = torch.backends.mkldnn
    return bool(unit.enabled and unit.conv.fp32_precision == "bf16")  # type: ignore[attr-defined]


def kernels_for(pattern: KernelCSR, geometry: Geometry, dtype: torch.dtype) -> tuple[str, str]:
    """Return a layer's kernels, ``"blocks"`` or ``"single weights"``, and why blocks cannot run.

    Both are empty without the C++ kernels, and for a pattern of single weights if no blocks could
    run anyway.
    """
    if extension is None:
        return "", ""
    why = ""
    if not extension.has_block_kernels():
        why = "this CPU has neither AMX nor AVX-512 BF16"
    elif dtype != torch.bfloat16 and (dtype != torch.float32 or not rounds_float32()):
        why = "blocks are computed only in bfloat16, or under torch.autocast to it"
    elif min(geometry.shape[0] // geometry.groups, geometry.shape[1]) < 16:
        why = "a group has fewer than 16 channels"
    if why:
        return ("single weights", why) if pattern.block != (1, 1) else ("", "")
    if fits_rows(pattern, geometry):
        return "blocks", ""
    empty = KernelCSR.from_positions(torch.zeros(0, dtype=torch.int64), geometry.shape)
    return "single weights", UNSHARED if fits_rows(empty, geometry) else UNFIT


def keeps_order(geometry: Geometry) -> bool:
    """Return whether the kernels can read and write tensors in their own order.

    They can if the stride is 1, the length is kept, and the padding is zeros or replicated ends.

    Example:
        >>> keeps_order(Geometry.of((8, 4, 3), 1, "same", 1, 1, "zeros"))
        True
    """
    return extension is not None and bool(extension.keeps_order(geometry))


class Chain:
    """Run stages one after the other, on tensors in the kernels' own order.

    Example:
        >>> geometry = Geometry.of((2, 1, 1), 1, 0, 1, 1, "zeros")
        >>> conv = Conv(torch.tensor([1.0, -1.0]), None, KernelCSR.full((2, 1, 1)), geometry, True)
        >>> Chain()(torch.tensor([[[-2.0, 3.0]]]), [conv, Pointwise(torch.ones(1, 2, 1))])
        tensor([[[2., 3.]]])
    """

    def __init__(self) -> None:
        self._made: tuple[list[Any], Any] = [], None  # the settings, and the chain built for them

    def __call__(self, x: Tensor, stages: Sequence[Stage]) -> Tensor | None:
        """Compute the stages, or return None and change nothing if a chain cannot compute them.

        Args:
            x: ``(N, C, L)`` on the CPU, not empty, with any strides; float32, float64 or, where
                ``in_rows``, bfloat16.
            stages: the stages, in order.

        Returns:
            ``(N, C_out, L)``, contiguous, and bfloat16 where ``in_rows``. Results of sparse
            convolutions are bit-identical to those outside a chain. The exceptions, in rows, are
            layers with fewer than 16 channels and gradients of replicated samples. Sums over
            positions, as in BatchNorm and gradients of weights, depend on N and L, but not on
            threads or the instruction set.
        """
        assert extension is not None
        rows = in_rows(x)
        settings: list[Any] = [rows]
        settings += [(s.eps, s.training) if type(s) is NormRelu else s[2:] for s in stages]
        made = self._made
        if made[0] != settings:
            chain = extension.Chain(rows)
            for stage in stages:
                stage.add_to(chain)
            made = self._made = settings, chain  # one assignment: threads may share this
        tensors = [tensor for stage in stages for tensor in stage[:2]]
        statistics = [
            (s.running_mean, s.running_var, s.num_batches_tracked, s.momentum)
            if type(s) is NormRelu
            else None
            for s in stages
        ]
        y: Tensor | None = extension.plain_chain(made[1], x, tensors, statistics)
        return y


def _norm_relu(x: Tensor, weight: Any, bias: Any, eps: float) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, weight, bias, True, 0.0, eps))


_BY_TORCH: dict[str, Any] = {
    "conv": partial(convolve, backend="cpp"),
    "pointwise": F.conv1d,
    "norm_relu": _norm_relu,
}


# csrc/autograd/chain.cpp calls this where the gradients need gradients themselves.
def gradients_by_python(
    stages: Sequence[tuple[Any, ...]], grad: Tensor, inputs: Sequence[Any], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Compute the gradients of a chain for double backward and torch's transforms.

    Args:
        stages: the name and the settings of each stage.
        grad: the gradient of the output.
        inputs: the input of the first stage, then two tensors or None for each stage.
        needed: whether the gradient of each input is needed.
    """

    def outputs(*wanted: Tensor) -> Tensor:
        given = iter(wanted)
        y, *tensors = (next(given) if need else x for x, need in zip(inputs, needed, strict=True))
        for i, (name, *settings) in enumerate(stages):
            own = tensors[2 * i : 2 * i + 2]
            if grad.dtype == torch.bfloat16 and name != "norm_relu":  # as autocast does
                y, *own = (t if t is None else t.to(grad.dtype) for t in (y, *own))
            y = _BY_TORCH[name](y, *own, *settings)
        return cast(Tensor, y)

    wanted = list(itertools.compress(inputs, needed))
    with torch.autocast(grad.device.type, enabled=False):
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            _, pull_back, *_ = torch.func.vjp(outputs, *wanted)
            found = iter(pull_back(grad))
        else:  # torch.func does not support such hooks
            again = torch.is_grad_enabled()
            with torch.enable_grad():
                # Views distinguish a tensor that occurs twice or depends on another one.
                own = [tensor.view_as(tensor) for tensor in wanted]
                y = outputs(*own)
            found = iter(torch.autograd.grad(y, own, grad, create_graph=again))
    return [next(found) if need else None for need in needed]
