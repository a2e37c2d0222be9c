"""Define ``SparseConv1d``, the layer that owns active weights and their pattern."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparseconv.core.geometry import Geometry, Padding, PaddingMode, resolve_padding, single
from sparseconv.core.modules import computes_as
from sparseconv.core.pattern import KernelCSR
from sparseconv.functional.conv import sparse_conv1d_resolved
from sparseconv.nn.dense_gradient import probed
from sparseconv.nn.padded_conv import OVERRIDES, padding_of
from sparseconv.nn.sparse_layer import SparseLayer, shared_options
from sparseconv.ops.backends import Backend

_PADDINGS = {
    "zeros": nn.ZeroPad1d,
    "replicate": nn.ReplicationPad1d,
    "reflect": nn.ReflectionPad1d,
    "circular": nn.CircularPad1d,
}


class SparseConv1d(SparseLayer):
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
        crow_indices, col_indices: buffers, the arrays of ``pattern`` on the layer's device.
            Assigning both sets the pattern; also assign ``values``. Do not write into them.
        regions: boxes in which dynamic sparse training keeps nnz constant; by default the whole
            weight.

    The state dict contains ``values``, ``crow_indices``, ``col_indices`` and ``bias``. Loading also
    accepts a dense ``weight``, and the tensors of ``torch.nn.utils.prune``; see docs/drop-in.md.

    Raises:
        ValueError, TypeError: arguments that are invalid for ``nn.Conv1d``, or do not fit together.

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
    _twin = nn.Conv1d
    _arguments = ("stride", "padding", "dilation", "groups", "padding_mode")

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
        super().__init__(
            in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype,
            density, pattern, block, backend,
        )  # fmt: skip
        if not isinstance(padding, str):
            padding = tuple(padding) if isinstance(padding, list | tuple) else (padding,)
            padding = tuple(single("padding", samples, 0) for samples in padding)
        self.padding, self.padding_mode = padding, padding_mode
        self._geometry()  # refuse what fits no input
        self.reset_parameters()

    def reset_parameters(self, fan_in: Literal["dense", "active"] = "dense") -> None:
        """Draw values and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as ``nn.Conv1d`` does.

        Args:
            fan_in: ``"dense"`` counts all weights of an output channel, so active weights have the
                distribution used by ``nn.Conv1d``. ``"active"`` counts only the active weights of
                each channel, which preserves the variance of the outputs; see Evci et al.,
                "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win", 2022.

        Example:
            >>> SparseConv1d(4, 8, 5).reset_parameters(fan_in="active")
        """
        self._renew()
        _, group_channels, kernel_size = self._pattern.shape
        active = self._pattern.crow_indices[::group_channels].long().diff()
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
        geometry = self._resolved or self._geometry()
        crow, col = self._indices()
        y = sparse_conv1d_resolved(input, values, crow, col, bias, geometry, self.backend)
        probe = self.dense_probe
        return y if probe is None else probed(y, input, values, probe, geometry)

    def _resolve(self, *arguments: Any) -> Geometry:
        return Geometry.of(self._pattern.shape, *arguments, block=self._pattern.block)

    @classmethod
    def _options_of(cls, conv: nn.Module) -> dict[str, Any]:
        if not isinstance(conv, nn.Conv1d):
            raise TypeError(f"conv must be an nn.Conv1d, but got {type(conv).__name__}")
        if OVERRIDES & vars(conv).keys() or not computes_as(conv, nn.Conv1d):
            return shared_options(conv) | padding_of(conv)
        padding: Any = conv.padding
        if conv.padding_mode != "zeros":  # torch pads by this list, even if the attribute differs
            pads = tuple(conv._reversed_padding_repeated_twice)
            taps, dilation = conv.kernel_size[0], single("dilation", conv.dilation, 1)
            padding = padding if resolve_padding(padding, taps, dilation) == pads else pads
        return shared_options(conv) | {"padding": padding}

    def _dense_options(self) -> tuple[dict[str, Any], list[nn.Module]]:
        left, right = self.resolved_padding
        if isinstance(self.padding, str) or left == right:
            padding = self.padding if isinstance(self.padding, str) else left
            return {"padding": padding}, []
        pad = _PADDINGS[self.padding_mode]((left, right))
        return {"padding": 0, "padding_mode": "zeros"}, [pad]


__test__ = {"SparseConv1d": SparseConv1d}  # for doctest, as its __module__ is sparseconv
