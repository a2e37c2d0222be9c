"""``SparseConv1d``: the layer that owns active weights and their pattern."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from sparseconv.core.checks import integer, number
from sparseconv.core.geometry import DTYPES, Geometry, Padding, single
from sparseconv.core.pattern import KernelCSR, Region, carry_over
from sparseconv.functional.conv import sparse_conv1d_resolved
from sparseconv.nn.buffer_check import check_indices, check_tag, check_tag_in_graph, new_tag
from sparseconv.nn.dense_gradient import new_probe, probed
from sparseconv.nn.parametrizations import Parametrizations
from sparseconv.nn.state import (
    INDICES,
    are_shared,
    asks_for_gradients,
    check_floats,
    check_not_shared,
    check_own_values,
    check_pattern,
    computes_conv1d,
    current,
    describe,
    own_entries,
    read_layer,
    shared_options,
)
from sparseconv.ops.backends import BACKENDS
from sparseconv.reference import dense_weight

_NO_WEIGHT = (
    "SparseConv1d has no 'weight', only 'values', the active weights in the pattern's CSR order; "
    "dense_weight() returns a dense copy, set_pattern(pattern, values) writes"
)
_NEVER_CHECKED: tuple[Any, int] = (None, -1)  # which tag was checked, at which version
_GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode")


class SparseConv1d(nn.Module):
    """``nn.Conv1d`` that stores and touches its active weights only.

    Args:
        in_channels, out_channels, kernel_size, stride: as in ``nn.Conv1d``.
        padding: as there, or a pair ``(left, right)``, in samples.
        dilation, groups, bias, padding_mode, device, dtype: as there.
        density: share of active weights, in [0, 1]; ``round(density * numel)`` of them are drawn
            with torch's global generator. Not used when ``pattern`` is given.
        pattern: which weights are active.
        backend: as in ``sparse_conv1d``.

    Attributes:
        values: parameter ``(nnz,)``, the active weights in the pattern's CSR order; the only
            weight storage, so gradients and optimizer state are nnz long too.
        bias: parameter ``(out_channels,)`` or None.
        pattern: the ``KernelCSR``; ``set_pattern`` changes it.
        crow_indices, col_indices: copies of the pattern's arrays on the layer's device.
        regions: boxes in which dynamic sparse training keeps nnz; by default one, the whole.

    The state dict holds ``values``, ``crow_indices``, ``col_indices`` and ``bias``. Loading also
    accepts a dense ``weight`` (its zeros are inactive, or a ``weight_mask`` says which) and the
    ``weight_orig`` and ``weight_mask`` of ``torch.nn.utils.prune``. A layer is loaded whole or
    not at all. When a load changes nnz, build a new optimizer, as after ``set_pattern``.

    Raises:
        ValueError, TypeError: arguments that ``nn.Conv1d`` refuses, in its words; a density
            outside [0, 1]; a pattern of another shape.

    Example:
        >>> import torch
        >>> layer = SparseConv1d(4, 8, 5, padding="same", density=0.1)
        >>> layer
        SparseConv1d(4, 8, kernel_size=(5,), stride=(1,), padding=same, nnz=16, density=10.00 %)
        >>> layer(torch.zeros(2, 4, 30)).shape
        torch.Size([2, 8, 30])
    """

    __module__ = "sparseconv"  # what pickles and reprs name

    values: nn.Parameter
    bias: nn.Parameter | None
    pattern_tag: Tensor

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
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float = 0.2,
        pattern: KernelCSR | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.in_channels = single("in_channels", in_channels, 1)
        self.out_channels = single("out_channels", out_channels, 1)
        self.kernel_size = (single("kernel_size", kernel_size, 1),)
        self.stride = (single("stride", stride, 1),)
        self.dilation = (single("dilation", dilation, 1),)
        self.groups = integer("groups must be a positive integer", groups)
        if self.groups <= 0:
            raise ValueError("groups must be a positive integer")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(f"{name} must be divisible by groups")
        if not isinstance(padding, str):
            padding = tuple(padding) if isinstance(padding, list | tuple) else (padding,)
            padding = tuple(single("padding", samples, 0) for samples in padding)
        self.padding, self.padding_mode = padding, padding_mode
        shape = (self.out_channels, self.in_channels // self.groups, self.kernel_size[0])
        settings = (getattr(self, name) for name in _GEOMETRY)
        self._resolved: Geometry | None = Geometry.of(shape, *settings)
        if backend not in ("auto", *BACKENDS):
            raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, but got {backend!r}")
        self.backend = backend
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in DTYPES:
            raise TypeError(f"dtype must be one of {DTYPES}, but got {dtype}")
        if pattern is None:
            density = number("density", density)
            if not 0 <= density <= 1:
                raise ValueError(f"density must lie in [0, 1], but got {density}")
            pattern = KernelCSR.random(shape, round(density * math.prod(shape)))
        check_pattern(pattern, shape)

        self.regions: tuple[Region, ...] = (Region((0, shape[0]), (0, shape[2])),)
        self.values = nn.Parameter(torch.empty(pattern.nnz, device=device, dtype=dtype))
        offsets = torch.empty(shape[0], device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(offsets) if bias else None)
        self._pattern, self._checked = pattern, _NEVER_CHECKED
        self.dense_probe: Tensor | None = None  # set by DSTScheduler for a step; see `probed`
        self.reset_parameters()

    def reset_parameters(self, fan_in: str = "dense") -> None:
        """Draw values and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as ``nn.Conv1d`` does.

        Args:
            fan_in: ``"dense"`` counts every weight of an output channel, so an active weight has
                the distribution that it has in ``nn.Conv1d``; ``"active"`` counts, channel by
                channel, the active ones, which keeps the variance of the outputs (Evci et al.,
                "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win", 2022).

        Raises:
            ValueError: another ``fan_in``.

        Example:
            >>> SparseConv1d(4, 8, 5).reset_parameters(fan_in="active")
        """
        self._adopt(self._pattern)  # after to_empty() the buffers have no content
        _, group_channels, kernel_size = self.pattern.shape
        active = self.pattern.crow_indices[::group_channels].long().diff()
        if fan_in == "dense":
            counts = torch.full_like(active, group_channels * kernel_size)
        elif fan_in == "active":
            counts = active.clamp(min=1)  # a channel without weights has a bias
        else:
            raise ValueError(f"fan_in must be 'dense' or 'active', but got {fan_in!r}")
        bound = counts.double().rsqrt().to(self.values.dtype)
        with torch.no_grad():
            self.values.uniform_(-1, 1).mul_(bound.repeat_interleave(active).to(self.values.device))
            if self.bias is not None:
                self.bias.uniform_(-1, 1).mul_(bound.to(self.bias.device))

    @property
    def pattern(self) -> KernelCSR:
        """Which weights are active; RuntimeError if the values may be those of another pattern."""
        tag: Any = self._buffers["pattern_tag"]
        checked = self._checked
        if is_dynamo_compiling():
            check_tag_in_graph(tag, self._own_tag)
        elif tag is not checked[0] or tag._version != checked[1]:
            self._checked = check_tag(tag, self._own_tag, checked)
        return self._pattern

    @property
    def crow_indices(self) -> Tensor:
        """``pattern.crow_indices``, copied to the layer's device."""
        return self._pattern.crow_indices.to(self.values.device, copy=True)

    @property
    def col_indices(self) -> Tensor:
        """``pattern.col_indices``, copied to the layer's device."""
        return self._pattern.col_indices.to(self.values.device, copy=True)

    @property
    def resolved_padding(self) -> tuple[int, int]:
        """Samples added ``(left, right)``, whatever the spelling of ``padding``."""
        return self._geometry().padding

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, C_in, L_in)`` or ``(C_in, L_in)``."""
        # nn.Module's __getattr__ is slow, but where values are pruned it is the only way.
        held = self._parameters
        values: Any = held["values"] if "values" in held else self.values  # noqa: SIM401
        bias = held["bias"] if "bias" in held else self.bias  # noqa: SIM401
        geometry = self._geometry()
        y = sparse_conv1d_resolved(input, values, self.pattern, bias, geometry, self.backend)
        probe = self.dense_probe
        return y if probe is None else probed(y, input, values, probe, geometry)

    def _geometry(self) -> Geometry:
        if self._resolved is None:  # an attribute was set
            settings = (getattr(self, name) for name in _GEOMETRY)
            self._resolved = Geometry.of(self._pattern.shape, *settings)
        return self._resolved

    def dense_weight(self) -> Tensor:
        """Return ``(C_out, C_in // groups, K)``, zeros where inactive; differentiable.

        Example:
            >>> pattern = KernelCSR.from_positions(torch.tensor([1]), (1, 1, 3))
            >>> layer = SparseConv1d(1, 1, 3, pattern=pattern)
            >>> layer.set_pattern(pattern, torch.tensor([5.0]))
            >>> layer.dense_weight().detach()
            tensor([[[0., 5., 0.]]])
        """
        return dense_weight(current(self, "values"), self.pattern)

    @torch.no_grad()
    def set_pattern(self, new: KernelCSR, values: Tensor | None = None) -> None:
        """Make other weights active.

        ``self.values`` stays the same parameter object, so optimizers still hold it: with as many
        active weights as before its data is overwritten in place, else its ``.data`` is replaced.
        Its gradient is dropped when the pattern changes. Optimizer state and running averages
        follow in ``DSTScheduler`` only. With another number of active weights, also after
        ``load_state_dict``, build a new optimizer: moments of the old length are an error, and
        torch's fused optimizers do not check it but write outside their memory. Start a new
        average too (``AveragedModel`` would refuse to run). No other thread may call the layer at
        the same time: it could find values of one pattern at positions of the other. So would
        another layer that shares the parameter ``values``.

        Args:
            new: the pattern, of the same shape.
            values: ``(nnz,)`` in the new CSR order; None keeps the surviving values and gives the
                others 0.

        Raises:
            TypeError, ValueError: another type or shape; the layer is left as it was.
            RuntimeError: the layer was made in ``torch.inference_mode()``, and this is outside; or
                torch's pruning computes its values.
            NotImplementedError: the values are sharded, or in shared memory.

        Example:
            >>> layer = SparseConv1d(1, 1, 3, pattern=KernelCSR.full((1, 1, 3)))
            >>> layer.set_pattern(KernelCSR.from_positions(torch.tensor([2]), (1, 1, 3)))
            >>> layer.values.shape
            torch.Size([1])
        """
        check_pattern(new, self._pattern.shape)
        check_own_values(self)
        if new != self._pattern:
            check_not_shared(self)
        if values is None:
            values = carry_over(self.values, self.pattern, new)
        else:
            check_floats("values", values, new.nnz)
            values = values.to(self.values)
        self._adopt(new)
        self.values.copy_(values)

    @torch.no_grad()
    def _adopt(self, pattern: KernelCSR) -> None:
        """Install a checked pattern; with another nnz the values become 0."""
        if self.values.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                "a layer made in torch.inference_mode() can be changed in that mode only; "
                "make it outside"
            )
        device, dtype = self.values.device, self.values.dtype
        with torch.inference_mode(False):  # tensors of that mode could not be trained later
            own_tag = new_tag(pattern)
            tag = own_tag.to(device, copy=True)
            if are_shared(self.values) and pattern != self._pattern:  # other processes keep theirs
                self.values.data = self.values.detach().clone()
            if self.values.shape != (pattern.nnz,):
                # A live graph keeps the old length for the next backward; a detour over another
                # dtype makes torch forget it.
                detour = torch.float32 if dtype == torch.float64 else torch.float64
                fresh = torch.zeros(pattern.nnz, device=device, dtype=dtype)
                self.values.data = torch.empty(pattern.nnz, device=device, dtype=detour)
                self.values.data = fresh
        if pattern != self._pattern:
            self.values.grad = None
        pattern.warm_up_like(self._pattern)
        self._pattern, self._own_tag = pattern, own_tag
        self.register_buffer("pattern_tag", tag, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> SparseConv1d:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.dense_probe is not None:  # the same object, which its scheduler knows
            self.dense_probe.grad = None
            self.dense_probe.data = new_probe(self._pattern.shape, self.values).data
        return self

    @classmethod
    @torch.no_grad()
    def from_dense(
        cls, conv: nn.Conv1d, mask: Tensor | None = None, *, backend: str = "auto"
    ) -> SparseConv1d:
        """Copy an ``nn.Conv1d`` into a sparse layer.

        Args:
            conv: the dense layer; left as it is. What does not train (``requires_grad``) will not.
            mask: bool ``(C_out, C_in // groups, K)``, the active weights; None: the layer's
                ``weight_mask``, as of ``torch.nn.utils.prune``, if there is one, else all that are
                not zero.
            backend: as in ``sparse_conv1d``.

        Raises:
            TypeError: ``conv`` is not an ``nn.Conv1d``, or computes something else than one;
                ``mask`` is not a bool tensor.
            ValueError: the shapes of mask and weight differ.

        Example:
            >>> conv = nn.Conv1d(2, 3, 5)
            >>> SparseConv1d.from_dense(conv, conv.weight.abs() > 0.1).kernel_size
            (5,)
        """
        if not isinstance(conv, nn.Conv1d):
            raise TypeError(f"conv must be an nn.Conv1d, but got {type(conv).__name__}")
        if not computes_conv1d(conv):
            raise TypeError(
                f"conv must compute what nn.Conv1d does, but {type(conv).__name__} has a forward "
                "of its own, which the sparse layer would not have; copy its weight and bias into "
                "an nn.Conv1d, and put what else it does into a module around the sparse layer"
            )
        weight = current(conv, "weight")
        if mask is None:
            mask = getattr(conv, "weight_mask", weight) != 0
        pattern = KernelCSR.from_mask(mask)
        # On the meta device nothing is drawn, so torch's generator is left as it was.
        options = shared_options(conv) | {"device": "meta", "dtype": weight.dtype}
        layer = cls(**options, padding=conv.padding, pattern=pattern, backend=backend)
        layer.to_empty(device=weight.device)
        layer.set_pattern(pattern, weight[mask.to(weight.device)])
        if layer.bias is not None and conv.bias is not None:
            layer.bias.copy_(current(conv, "bias"))
            layer.bias.requires_grad_(asks_for_gradients(conv, "bias"))
        layer.values.requires_grad_(asks_for_gradients(conv, "weight"))
        return layer.train(conv.training)

    @torch.no_grad()
    def to_dense(self) -> nn.Conv1d:
        """Copy the layer into an ``nn.Conv1d`` that computes the same function.

        Raises:
            NotImplementedError: the padding differs left and right, which ``nn.Conv1d`` cannot do.

        Example:
            >>> SparseConv1d(2, 3, 5, padding=2).to_dense()
            Conv1d(2, 3, kernel_size=(5,), stride=(1,), padding=(2,))
        """
        left, right = self.resolved_padding
        if left != right and not isinstance(self.padding, str):
            raise NotImplementedError(
                f"nn.Conv1d cannot pad {left} samples left and {right} right; "
                "sparseconv.to_dense(layer) puts torch's padding layer before it"
            )
        padding = self.padding if isinstance(self.padding, str) else left
        options = shared_options(self) | {"device": "meta", "dtype": self.values.dtype}
        conv = nn.Conv1d(**options, padding=padding).to_empty(device=self.values.device)
        conv.weight.copy_(self.dense_weight())
        if conv.bias is not None and self.bias is not None:
            conv.bias.copy_(current(self, "bias"))
            conv.bias.requires_grad_(asks_for_gradients(self, "bias"))
        conv.weight.requires_grad_(asks_for_gradients(self, "values"))
        return conv.train(self.training)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update((prefix + name, getattr(self, name)) for name in INDICES)
        metadata = getattr(destination, "_metadata", {})
        if prefix[:-1] in metadata:  # as torch calls it
            metadata[prefix[:-1]].update(describe(self.pattern))  # which checks the tag

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load the layer's own entries whole or not at all; see the class for the formats."""
        hooks, self._load_state_dict_pre_hooks = self._load_state_dict_pre_hooks, OrderedDict()
        try:
            for hook in hooks.values():  # before anything is read, as they may rename entries
                hook(state_dict, prefix, *rest)
            self._load_entries(state_dict, prefix, *rest)
        finally:
            self._load_state_dict_pre_hooks = hooks

    def _load_entries(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        metadata, strict, missing_keys, _, error_msgs = rest
        found = own_entries(self, state_dict, prefix)
        bias = self._parameters.get("bias")  # None also if it is parametrized
        if not found:  # the layer's own are missing; a subclass may have others
            super()._load_from_state_dict(state_dict, prefix, *rest)
            missing_keys.extend(prefix + name for name in INDICES if strict)
            return
        try:
            pattern, entries = read_layer(self, found, self._pattern, bias is not None, metadata)
            self._adopt(pattern)
        except (TypeError, ValueError, RuntimeError) as error:
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
            return
        left = {name: v for name, v in state_dict.items() if name.removeprefix(prefix) not in found}
        loaded = {prefix + name: t for name, t in entries.items() if name not in INDICES}
        super()._load_from_state_dict(left | loaded, prefix, *rest)
        if self.pattern_tag.device != self.values.device:  # assign=True
            tag = self._own_tag.to(self.values.device, copy=True)
            self.register_buffer("pattern_tag", tag, persistent=False)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the probe: a scheduler that is copied too brings another."""
        return {**self.__dict__, "dense_probe": None, "_checked": _NEVER_CHECKED}

    def extra_repr(self) -> str:
        """Describe the layer as ``nn.Conv1d`` does, and its sparsity."""
        usual = {"dilation": (1,), "groups": 1, "bias": True, "padding_mode": "zeros"}
        options = {**self.__dict__, "bias": self.bias is not None}
        said = [f"padding={self.padding}"] if self.padding not in ((0,), (0, 0)) else []
        said += [f"{name}={options[name]}" for name in usual if options[name] != usual[name]]
        head = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        tail = f"nnz={self._pattern.nnz}, density={100 * self._pattern.density:.2f} %"
        return ", ".join([head, f"stride={self.stride}", *said, tail])

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(_NO_WEIGHT)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(_NO_WEIGHT)
        if name == "pattern":
            raise AttributeError("set_pattern(pattern) sets the pattern: values move with it")
        if name in INDICES:  # torch.func.functional_call, with a state dict
            check_indices(value, getattr(self._pattern, name))
            return
        if name in _GEOMETRY:
            self._resolved = None
            value = tuple(value) if isinstance(value, list) else value  # immutable
        if name == "parametrizations" and type(value) is nn.ModuleDict:  # torch's, still empty
            value = Parametrizations(dict(value.items()))
        super().__setattr__(name, value)


__test__ = {"SparseConv1d": SparseConv1d}  # for doctest, as its __module__ is sparseconv
