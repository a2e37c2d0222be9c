"""Define ``SparseConv1d``, the layer that owns active weights and their pattern."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from sparseconv.core.checks import share
from sparseconv.core.geometry import DTYPES, Geometry, Padding, PaddingMode, single
from sparseconv.core.pattern import KernelCSR
from sparseconv.core.region import Region
from sparseconv.functional.conv import sparse_conv1d_resolved
from sparseconv.nn.dense_gradient import probed
from sparseconv.nn.modules import computes_as
from sparseconv.nn.padded_conv import convolution_of
from sparseconv.nn.patterned import PatternedModule
from sparseconv.nn.rewiring import check_pattern
from sparseconv.nn.state import asks_for_gradients, current, shared_options
from sparseconv.ops.backends import BACKENDS, Backend
from sparseconv.reference import dense_weight

_NO_WEIGHT = (
    "SparseConv1d has no 'weight', only 'values', the active weights in the pattern's CSR order; "
    "to read a dense copy, call dense_weight(); to write, call set_pattern(pattern, values)"
)
_PADDINGS = {
    "zeros": nn.ZeroPad1d,
    "replicate": nn.ReplicationPad1d,
    "reflect": nn.ReflectionPad1d,
    "circular": nn.CircularPad1d,
}
DENSITY = 0.2
_GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode")


class SparseConv1d(PatternedModule):
    """Convolve as ``nn.Conv1d`` does, but store and use only the active weights.

    Args:
        in_channels, out_channels, kernel_size, stride: as in ``nn.Conv1d``.
        padding: as in ``nn.Conv1d``, or a pair ``(left, right)``, in time steps.
        dilation, groups, bias, padding_mode, device, dtype: as in ``nn.Conv1d``.
        density: the share of active weights, in [0, 1]; 0.2 by default if ``pattern`` is None.
            ``round(density * numel)`` weights are drawn with torch's global generator; with blocks,
            the same share of (block, tap) units.
        pattern: the active weights; replaces ``density`` and ``block``.
        block: numbers of channels ``(out, in)`` that share their taps, or one int for both; see
            ``KernelCSR``.
        backend: as in ``sparse_conv1d``.

    Attributes:
        values: parameter ``(nnz,)``, the active weights in the pattern's CSR order. Gradients and
            optimizer state also have nnz entries.
        bias: parameter ``(out_channels,)`` or None.
        pattern: the ``KernelCSR``; call ``set_pattern`` to change it.
        crow_indices, col_indices: copies of the pattern's arrays on the layer's device.
        regions: boxes in which dynamic sparse training keeps nnz constant; by default the whole
            weight.

    The state dict contains ``values``, ``crow_indices``, ``col_indices`` and ``bias``. Loading also
    accepts a dense ``weight``, and the ``weight_orig`` and ``weight_mask`` of
    ``torch.nn.utils.prune``. Zeros in ``weight`` become inactive unless there is a ``weight_mask``.
    A layer is loaded completely or not at all, and keeps its block. If a load changes nnz, build a
    new optimizer. As with ``nn.Conv1d``, the tensors in a state dict change with the layer; to keep
    their contents, use ``copy.deepcopy``.

    Raises:
        ValueError, TypeError: arguments that are invalid for ``nn.Conv1d``, with the same message;
            a density outside [0, 1] or passed with a pattern; a pattern of the wrong shape; a
            block that is too large or crosses a group boundary.

    Example:
        >>> import torch
        >>> layer = SparseConv1d(4, 8, 5, padding="same", density=0.1)
        >>> layer
        SparseConv1d(4, 8, kernel_size=(5,), stride=(1,), padding=same, nnz=16, density=10.00 %)
        >>> layer(torch.zeros(2, 4, 30)).shape
        torch.Size([2, 8, 30])
    """

    __module__ = "sparseconv"  # the name in pickles and reprs

    output_padding = (0,)  # for the repr of nn.Conv1d
    bias: nn.Parameter | None
    _resolved: Geometry | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: Padding = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float | None = None,
        pattern: KernelCSR | None = None,
        block: int | tuple[int, int] = 1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.in_channels = single("in_channels", in_channels, 1)
        self.out_channels = single("out_channels", out_channels, 1)
        self.kernel_size = (single("kernel_size", kernel_size, 1),)
        self.stride = (single("stride", stride, 1),)
        self.dilation = (single("dilation", dilation, 1),)
        self.groups = single("groups", groups, 1)
        if self.in_channels % self.groups:
            raise ValueError("in_channels must be divisible by groups")
        if not isinstance(padding, str):
            padding = tuple(padding) if isinstance(padding, list | tuple) else (padding,)
            padding = tuple(single("padding", samples, 0) for samples in padding)
        self.padding, self.padding_mode = padding, padding_mode
        shape = (self.out_channels, self.in_channels // self.groups, self.kernel_size[0])
        if backend not in ("auto", *BACKENDS):
            raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, but got {backend!r}")
        self.backend = backend
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in DTYPES:
            raise TypeError(f"dtype must be one of {DTYPES}, but got {dtype}")
        if pattern is None:
            density = share("density", DENSITY if density is None else density)
            pattern = KernelCSR.random(shape, round(density * math.prod(shape)), block=block)
        elif density is not None or block != 1:
            raise ValueError("pass either pattern, or density and block, not both")
        check_pattern(pattern, shape, self.groups)

        self.regions: tuple[Region, ...] = (Region((0, shape[0]), (0, shape[2])),)
        self.values = nn.Parameter(torch.empty(pattern.nnz, device=device, dtype=dtype))
        offsets = torch.empty(shape[0], device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(offsets) if bias else None)
        self._pattern = pattern
        self._geometry()  # refuse what fits no input
        self.reset_parameters()

    def reset_parameters(self, fan_in: Literal["dense", "active"] = "dense") -> None:
        """Draw values and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as ``nn.Conv1d`` does.

        Args:
            fan_in: ``"dense"`` counts all weights of an output channel, so active weights have the
                distribution used by ``nn.Conv1d``. ``"active"`` counts only the active weights of
                each channel, which preserves the variance of the outputs; see Evci et al.,
                "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win", 2022.

        Raises:
            ValueError: any other ``fan_in``.

        Example:
            >>> SparseConv1d(4, 8, 5).reset_parameters(fan_in="active")
        """
        self._adopt(self._pattern)  # after to_empty() the buffers have no content
        _, group_channels, kernel_size = self.pattern.shape
        active = self.pattern.crow_indices[::group_channels].long().diff()
        if fan_in == "dense":
            counts = torch.full_like(active, group_channels * kernel_size)
        elif fan_in == "active":
            counts = active.clamp(min=1)  # a channel without weights still has a bias
        else:
            raise ValueError(f"fan_in must be 'dense' or 'active', but got {fan_in!r}")
        bound = counts.double().rsqrt().to(self.values.dtype)
        with torch.no_grad():
            self.values.uniform_(-1, 1).mul_(bound.repeat_interleave(active).to(self.values.device))
            if self.bias is not None:
                self.bias.uniform_(-1, 1).mul_(bound.to(self.bias.device))

    @property
    def resolved_padding(self) -> tuple[int, int]:
        """Return the padding as ``(left, right)`` in time steps, whatever form it was passed in."""
        return self._geometry().padding

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, C_in, L_in)`` or ``(C_in, L_in)``."""
        # nn.Module's __getattr__ is slow, but only it can read pruned values.
        held = self._parameters
        values: Any = held["values"] if "values" in held else self.values  # noqa: SIM401
        bias = held["bias"] if "bias" in held else self.bias  # noqa: SIM401
        geometry = self._geometry()
        y = sparse_conv1d_resolved(input, values, self.pattern, bias, geometry, self.backend)
        probe = self.dense_probe
        return y if probe is None else probed(y, input, values, probe, geometry)

    def _geometry(self) -> Geometry:
        if self._resolved is None:  # an attribute was set since the last call
            settings = (getattr(self, name) for name in _GEOMETRY)
            self._resolved = Geometry.of(self._pattern.shape, *settings)
        return self._resolved

    def dense_weight(self) -> Tensor:
        """Return the differentiable weight ``(C_out, C_in // groups, K)``, 0 where inactive.

        Example:
            >>> pattern = KernelCSR.from_positions(torch.tensor([1]), (1, 1, 3))
            >>> layer = SparseConv1d(1, 1, 3, pattern=pattern)
            >>> layer.set_pattern(pattern, torch.tensor([5.0]))
            >>> layer.dense_weight().detach()
            tensor([[[0., 5., 0.]]])
        """
        return dense_weight(current(self, "values"), self.pattern)

    @classmethod
    @torch.no_grad()
    def from_dense(
        cls,
        conv: nn.Conv1d,
        mask: Tensor | None = None,
        *,
        block: int | tuple[int, int] = 1,
        backend: Backend = "auto",
    ) -> SparseConv1d:
        """Copy an ``nn.Conv1d`` into a sparse layer.

        Args:
            conv: the dense layer, which stays unchanged; ``requires_grad`` is copied. A subclass
                may pad the input or crop the output in its ``forward``, as causal layers do.
            mask: bool ``(C_out, C_in // groups, K)``, the active weights. None means the layer's
                ``weight_mask`` from ``torch.nn.utils.prune`` or, if it has none, all nonzero
                weights.
            block: blocks of channels in which the mask is constant, as in ``block_mask``; see
                ``KernelCSR``.
            backend: as in ``sparse_conv1d``.

        Raises:
            TypeError: ``conv`` is not an ``nn.Conv1d``, or is a subclass that does more than pad,
                convolve and crop; ``mask`` is not a bool tensor.
            ValueError: the mask's shape differs from the weight's, or the mask is not constant in
                blocks.

        Example:
            >>> conv = nn.Conv1d(2, 3, 5)
            >>> SparseConv1d.from_dense(conv, conv.weight.abs() > 0.1).kernel_size
            (5,)
        """
        if not isinstance(conv, nn.Conv1d):
            raise TypeError(f"conv must be an nn.Conv1d, but got {type(conv).__name__}")
        geometry = convolution_of(conv)
        weight = current(conv, "weight")
        if mask is None:
            mask = getattr(conv, "weight_mask", weight) != 0
        pattern = KernelCSR.from_mask(mask, block)
        # On the meta device nothing is drawn, so torch's generator keeps its state.
        options = geometry | {"device": "meta", "dtype": weight.dtype}
        layer = cls(**options, pattern=pattern, backend=backend)
        layer.to_empty(device=weight.device)
        layer._adopt(pattern)
        layer.values.copy_(weight[mask.to(weight.device)])
        layer.values.requires_grad_(asks_for_gradients(conv, "weight"))
        _copy_bias(conv, layer)
        return layer.train(conv.training)

    @torch.no_grad()
    def to_dense(self) -> nn.Module:
        """Copy the layer into an ``nn.Conv1d`` that computes the same function.

        If ``padding`` is a pair of different numbers, return an ``nn.Sequential`` with torch's
        padding layer and an ``nn.Conv1d``.

        Raises:
            NotImplementedError: a subclass overrides the layer's code, or ``forward`` was replaced.

        Example:
            >>> SparseConv1d(2, 3, 5, padding=2).to_dense()
            Conv1d(2, 3, kernel_size=(5,), stride=(1,), padding=(2,))
        """
        if not computes_as(self, (SparseConv1d,)) or "forward" in vars(self):
            raise NotImplementedError(
                f"this {type_before_parametrizations(self).__name__} runs code that an nn.Conv1d "
                "cannot run; move that code into a module that wraps a SparseConv1d"
            )
        options = shared_options(self) | {"device": "meta", "dtype": self.values.dtype}
        left, right = self.resolved_padding
        apart = left != right and not isinstance(self.padding, str)
        if apart:
            options |= {"padding": 0, "padding_mode": "zeros"}
        else:
            options["padding"] = self.padding if isinstance(self.padding, str) else left
        conv = nn.Conv1d(**options).to_empty(device=self.values.device)
        conv.weight.copy_(self.dense_weight())
        conv.weight.requires_grad_(asks_for_gradients(self, "values"))
        _copy_bias(self, conv)
        whole = nn.Sequential(_PADDINGS[self.padding_mode]((left, right)), conv) if apart else conv
        return whole.train(self.training)

    def extra_repr(self) -> str:
        """Describe the layer as ``nn.Conv1d`` does, with nnz, density and block."""
        usual = nn.Conv1d.extra_repr(self)  # type: ignore[arg-type, no-untyped-call]
        block = f", block={self._pattern.block}" if self._pattern.block != (1, 1) else ""
        density = 100 * self._pattern.density
        return f"{usual}, nnz={self._pattern.nnz}, density={density:.2f} %{block}"

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(_NO_WEIGHT)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(_NO_WEIGHT)
        if name in _GEOMETRY:
            self._resolved = None
            value = tuple(value) if isinstance(value, list) else value  # a list could change unseen
        super().__setattr__(name, value)


def _copy_bias(source: SparseConv1d | nn.Conv1d, target: SparseConv1d | nn.Conv1d) -> None:
    if target.bias is not None:
        target.bias.copy_(current(source, "bias"))
        target.bias.requires_grad_(asks_for_gradients(source, "bias"))


__test__ = {"SparseConv1d": SparseConv1d}  # for doctest, as its __module__ is sparseconv
