"""Define what ``SparseConv1d`` and ``SparseConvTranspose1d`` have in common."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from sparseconv.core.blocks import Region
from sparseconv.core.checks import share
from sparseconv.core.geometry import DTYPES, Geometry, single
from sparseconv.core.modules import computes_as
from sparseconv.core.pattern import KernelCSR
from sparseconv.nn.patterned import PatternedModule, check_pattern
from sparseconv.ops.backends import BACKENDS, Backend
from sparseconv.reference import Indices, dense_weight

DENSITY = 0.2


class SparseLayer(PatternedModule):
    """Hold a convolution's arguments, active weights and bias."""

    _twin: ClassVar[type[nn.Module]]  # torch's layer with a dense weight
    _arguments: ClassVar[tuple[str, ...]]  # attributes that decide the geometry
    transposed = False  # the weight's first dimension: output channels, or input channels if True
    bias: nn.Parameter | None
    _resolved: Geometry | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int],
        dilation: int | tuple[int],
        groups: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        density: float | None,
        pattern: KernelCSR | None,
        block: int | tuple[int, int],
        backend: str,
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
        if self.transposed and self.out_channels % self.groups:
            raise ValueError("out_channels must be divisible by groups")
        sides = self.out_channels, self.in_channels
        rows, columns = reversed(sides) if self.transposed else sides
        shape = (rows, columns // self.groups, self.kernel_size[0])
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
        offsets = torch.empty(self.out_channels, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(offsets) if bias else None)
        self._pattern = pattern

    def _geometry(self) -> Geometry:
        if self._resolved is None:  # an attribute was set since the last call
            self._resolved = self._resolve(*(getattr(self, name) for name in self._arguments))
        return self._resolved

    def _resolve(self, *arguments: Any) -> Geometry:
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        """Return the differentiable weight, of the pattern's shape, which is 0 where inactive.

        Example:
            >>> from sparseconv import SparseConv1d
            >>> pattern = KernelCSR.from_positions(torch.tensor([1]), (1, 1, 3))
            >>> layer = SparseConv1d(1, 1, 3, pattern=pattern)
            >>> layer.set_pattern(pattern, torch.tensor([5.0]))
            >>> layer.dense_weight().detach()
            tensor([[[0., 5., 0.]]])
        """
        indices = Indices(*self._indices(), self._pattern.shape)
        return dense_weight(current(self, "values"), indices)

    @classmethod
    @torch.no_grad()
    def from_dense(
        cls,
        conv: nn.Conv1d | nn.ConvTranspose1d,
        mask: Tensor | None = None,
        *,
        block: int | tuple[int, int] = 1,
        backend: Backend = "auto",
    ) -> Self:
        """Copy torch's dense layer, an ``nn.Conv1d`` or ``nn.ConvTranspose1d``, into a sparse one.

        Args:
            conv: the dense layer, which stays unchanged; ``requires_grad`` is copied. A subclass of
                ``nn.Conv1d`` may pad the input or crop the output in its ``forward``, as causal
                layers do.
            mask: bool, of the weight's shape, the active weights. None means the layer's
                ``weight_mask`` from ``torch.nn.utils.prune`` or, if it has none, all nonzero
                weights.
            block: blocks of channels in which the mask is constant, as in ``block_mask``; see
                ``KernelCSR``.
            backend: as in ``sparse_conv1d``.

        Raises:
            TypeError, ValueError: ``conv`` is of another class, or a subclass that does more; the
                mask is not bool, of the weight's shape, or constant in blocks.

        Example:
            >>> from sparseconv import SparseConv1d
            >>> conv = nn.Conv1d(2, 3, 5)
            >>> SparseConv1d.from_dense(conv, conv.weight.abs() > 0.1).kernel_size
            (5,)
        """
        options = cls._options_of(conv)
        weight = current(conv, "weight")
        if mask is None:
            mask = getattr(conv, "weight_mask", weight) != 0
        pattern = KernelCSR.from_mask(mask, block)
        # On the meta device nothing is drawn, so torch's generator keeps its state.
        options |= {"device": "meta", "dtype": weight.dtype}
        layer = cls(**options, pattern=pattern, backend=backend)
        layer.to_empty(device=weight.device)
        layer._adopt(pattern)
        layer.values.copy_(weight[mask.to(weight.device)])
        layer.values.requires_grad_(asks_for_gradients(conv, "weight"))
        _copy_bias(conv, layer)
        return layer.train(conv.training)

    @torch.no_grad()
    def to_dense(self) -> nn.Module:
        """Copy the layer into torch's dense one, which computes the same function.

        If the ``padding`` of a ``SparseConv1d`` is a pair of different numbers, return an
        ``nn.Sequential`` with torch's padding layer and an ``nn.Conv1d``.

        Raises:
            NotImplementedError: a subclass overrides the layer's code, or ``forward`` was replaced.

        Example:
            >>> from sparseconv import SparseConv1d
            >>> SparseConv1d(2, 3, 5, padding=2).to_dense()
            Conv1d(2, 3, kernel_size=(5,), stride=(1,), padding=(2,))
        """
        ours = next(kind for kind in type(self).__mro__ if "_twin" in vars(kind))
        if not computes_as(self, ours) or "forward" in vars(self):
            raise NotImplementedError(
                f"this {type_before_parametrizations(self).__name__} runs code that an "
                f"nn.{self._twin.__name__} cannot run; move that code into a module that wraps a "
                f"{ours.__name__}"
            )
        own, before = self._dense_options()
        options = shared_options(self) | own | {"device": "meta", "dtype": self.values.dtype}
        conv: Any = self._twin(**options).to_empty(device=self.values.device)
        conv.weight.copy_(self.dense_weight())
        conv.weight.requires_grad_(asks_for_gradients(self, "values"))
        _copy_bias(self, conv)
        whole: nn.Module = nn.Sequential(*before, conv) if before else conv
        return whole.train(self.training)

    @classmethod
    def _options_of(cls, conv: nn.Module) -> dict[str, Any]:
        """Return the arguments of a layer that computes what a dense one does; check its class."""
        raise NotImplementedError

    def _dense_options(self) -> tuple[dict[str, Any], list[nn.Module]]:
        """Return the twin's arguments that differ, and the modules that come before it."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Describe the layer as torch's dense layer does, with nnz, density and block."""
        usual = nn.Conv1d.extra_repr(self)  # type: ignore[arg-type, no-untyped-call]
        block = f", block={self._pattern.block}" if self._pattern.block != (1, 1) else ""
        nnz = len(self.col_indices)
        return f"{usual}, nnz={nnz}, density={100 * nnz / self._pattern.numel:.2f} %{block}"

    def _no_weight(self) -> AttributeError:
        return AttributeError(
            f"{type(self).__name__} has no 'weight', only 'values', the active weights in the "
            "pattern's CSR order; to read a dense copy, call dense_weight(); to write, call "
            "set_pattern(pattern, values)"
        )

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise self._no_weight()
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise self._no_weight()
        if name == "_pattern" and getattr(self.__dict__.get(name), "block", None) != value.block:
            self._resolved = None
        if name in self._arguments:
            self._resolved = None
            value = tuple(value) if isinstance(value, list) else value  # a list could change unseen
        super().__setattr__(name, value)


def _copy_bias(source: Any, target: Any) -> None:
    if target.bias is not None:
        target.bias.copy_(current(source, "bias"))
        target.bias.requires_grad_(asks_for_gradients(source, "bias"))


def shared_options(layer: nn.Module) -> dict[str, Any]:
    """Collect the arguments that a sparse layer and torch's dense one have in common."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
    options = {name: getattr(layer, name) for name in (*names, "padding_mode")}
    return options | {"bias": layer.bias is not None}


def current(layer: nn.Module, name: str) -> Tensor:
    """Return a layer's weight, values or bias as its next forward pass would use it."""
    # torch.nn.utils.prune computes the attribute itself only during that pass.
    tensor: Tensor = getattr(layer, name)
    if hasattr(layer, f"{name}_orig") and hasattr(layer, f"{name}_mask"):
        tensor = getattr(layer, f"{name}_orig") * getattr(layer, f"{name}_mask")
    return tensor


def asks_for_gradients(layer: nn.Module, name: str) -> bool:
    """Return whether a weight, values or bias, or a tensor it is computed from, needs gradients."""
    if (own := layer._parameters.get(name)) is not None:
        return own.requires_grad
    # The computed tensor itself may stem from a pass without gradients.
    sources = [p for key, p in layer._parameters.items() if key.startswith(f"{name}_")]
    if is_parametrized(layer, name):
        sources += layer.parametrizations[name].parameters()  # type: ignore[index,union-attr]
    return any(p.requires_grad for p in sources if p is not None)
