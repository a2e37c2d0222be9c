"""Define ``SparseConvTranspose1d``, a transposed convolution with sparse weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from sparseconv.core.geometry import Geometry
from sparseconv.core.modules import computes_as
from sparseconv.core.pattern import KernelCSR
from sparseconv.functional.conv import conv_transpose_resolved
from sparseconv.nn.dense_gradient import probed
from sparseconv.nn.sparse_layer import SparseLayer, shared_options
from sparseconv.ops.backends import Backend


class SparseConvTranspose1d(SparseLayer):
    """Compute what ``nn.ConvTranspose1d`` does, but store and use only the active weights.

    Attributes, state dicts and methods are those of ``SparseConv1d``, with one difference: the
    pattern, its regions and a dense weight have the shape ``(in_channels, out_channels // groups,
    kernel_size)``, as in ``nn.ConvTranspose1d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as in ``nn.ConvTranspose1d``.
        output_padding, groups, bias, dilation, padding_mode, device, dtype: likewise.
        density, pattern, block, backend: as in ``SparseConv1d``; a block has ``(in, out)``
            channels.

    Raises:
        ValueError, TypeError: as in ``SparseConv1d``.

    Example:
        >>> import torch
        >>> layer = SparseConvTranspose1d(8, 4, 16, stride=8, padding=4, density=0.1)
        >>> layer
        SparseConvTranspose1d(8, 4, kernel_size=(16,), stride=(8,), padding=(4,), nnz=51, \
density=9.96 %)
        >>> layer(torch.zeros(2, 8, 30)).shape
        torch.Size([2, 4, 240])
    """

    __module__ = "sparseconv"  # the name in pickles and reprs

    _twin = nn.ConvTranspose1d
    _arguments = ("stride", "padding", "output_padding", "groups", "dilation")
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] = 0,
        output_padding: int | tuple[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int] = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float | None = None,
        pattern: KernelCSR | None = None,
        block: int | tuple[int, int] = 1,
        backend: Backend = "auto",
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(
                'Only "zeros" padding mode is supported for SparseConvTranspose1d, but got '
                f"padding_mode={padding_mode!r}"
            )
        super().__init__(
            in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype,
            density, pattern, block, backend,
        )  # fmt: skip
        self.padding_mode = padding_mode
        self.padding, self.output_padding = padding, output_padding
        geometry = self._geometry()  # refuse what nn.ConvTranspose1d would refuse when called
        self.padding, self.output_padding = geometry.padding[:1], (self._extra,)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw values and bias as ``nn.ConvTranspose1d`` does.

        The distribution is U(-1/sqrt(n), 1/sqrt(n)), with ``n = out_channels // groups *
        kernel_size``.
        """
        self._renew()
        _, channels, kernel_size = self._pattern.shape
        bound = (channels * kernel_size) ** -0.5
        with torch.no_grad():
            for parameter in (self.values, self.bias):
                if parameter is not None:
                    parameter.uniform_(-bound, bound)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Map ``(N, C_in, L_in)`` or ``(C_in, L_in)`` to the ``output_size``, as torch's layer."""
        geometry, extra = self._geometry(), self._extra
        if output_size is not None:
            how: Any = self.stride, self.padding, self.kernel_size, 1, self.dilation
            like: Any = self
            (extra,) = nn.ConvTranspose1d._output_padding(like, input, list(output_size), *how)
        y = conv_transpose_resolved(
            input, self.values, *self._indices(), self.bias, geometry, extra, self.backend
        )
        probe = self.dense_probe
        return y if probe is None else probed(y, input, self.values, probe, geometry, True)

    def _resolve(self, *arguments: Any) -> Geometry:
        shape, block = self._pattern.shape, self._pattern.block
        geometry, self._extra = Geometry.of_transposed(shape, *arguments, block=block)
        return geometry

    @classmethod
    def _options_of(cls, conv: nn.Module) -> dict[str, Any]:
        if not computes_as(conv, nn.ConvTranspose1d) or "forward" in vars(conv):
            raise TypeError(
                "conv must be an nn.ConvTranspose1d that runs no other code, but got "
                f"{type_before_parametrizations(conv).__name__}"
            )
        own = {"padding": conv.padding, "output_padding": conv.output_padding}
        return shared_options(conv) | own

    def _dense_options(self) -> tuple[dict[str, Any], list[nn.Module]]:
        return {"padding": self.padding, "output_padding": self.output_padding}, []


__test__ = {"SparseConvTranspose1d": SparseConvTranspose1d}  # for doctest, as __module__ differs
