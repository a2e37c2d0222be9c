"""Check the pattern and the tensors of a convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseconv.core.checks import ArgumentError
from sparseconv.core.geometry import DTYPES, Geometry
from sparseconv.core.pattern import KernelCSR


class DtypeError(TypeError, RuntimeError):
    """Error for a wrong dtype; both a TypeError and, as in ``F.conv1d``, a RuntimeError."""


def check_pattern_type(pattern: object) -> None:
    if not isinstance(pattern, KernelCSR):
        raise TypeError(
            f"pattern must be a KernelCSR, but got {type(pattern).__name__}; create one with "
            "KernelCSR.from_mask(mask)"
        )


def check(
    input: Tensor,
    values: Tensor,
    col: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    transposed: bool = False,
) -> None:
    """Reject what the kernels cannot compute, with the message of ``F.conv1d`` if there is one.

    ``transposed`` means ``F.conv_transpose1d``, from the convolution's outputs to its inputs.
    """
    dtype, device = input.dtype, input.device
    if not (
        dtype in DTYPES
        and input.layout is torch.strided
        and values.layout is torch.strided
        and values.dtype is dtype
        and values.device == device
        and (bias is None or (bias.dtype is dtype and bias.device == device))
    ):
        refuse_types(input, values, bias)
    out_channels, groups = geometry.out_channels, geometry.groups
    channels, name, given = geometry.group_channels * groups, "sparse_conv1d", f"groups={groups}"
    if transposed:
        channels, out_channels = out_channels, channels
        name, given = "sparse_conv_transpose1d", "transposed=1"
    size = input.shape
    if len(size) not in (2, 3) or (size[-1] == 0 and not (transposed and size[0] == 0)):
        raise ArgumentError(
            f"Expected 2D (unbatched) or 3D (batched) input to {name} with optional 0 dim "
            f"batch size, but got input of size: {list(size)}"
        )
    if size[-2] != channels:
        raise ArgumentError(
            f"Given {given}, weight of size {list(geometry.shape)}, expected input{list(size)} to "
            f"have {channels} channels, but got {size[-2]} channels instead"
        )
    if values.shape != col.shape:
        raise ArgumentError(
            f"values must have shape ({col.shape[0]},), one value for each active weight of the "
            f"pattern, but got {list(values.shape)}"
        )
    if col.device != device:
        raise ArgumentError(
            f"Expected all tensors to be on the same device, but input is on {device} and the "
            f"pattern's indices on {col.device}; move the layer with .to()"
        )
    if bias is not None and bias.shape != (out_channels,):
        raise ArgumentError(
            f"Given {given}, weight of size {list(geometry.shape)}, expected bias to be "
            f"1-dimensional with {out_channels} elements, but got bias of size "
            f"{list(bias.shape)} instead"
        )
    if not transposed:
        geometry.check_length(size[-1])


_FX = (
    "; torch.fx.symbolic_trace cannot trace a SparseConv1d: use torch.export, or a "
    "torch.fx.Tracer whose is_leaf_module(module, name) returns True for this layer"
)


def refuse_types(input: Tensor, values: Tensor, bias: Tensor | None) -> None:
    """Raise the error for the first tensor that no kernel accepts."""
    for name, tensor in (("input", input), ("values", values), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            kind = type(tensor)
            traced = kind.__module__.startswith("torch.fx")
            raise TypeError(
                f"{name} must be a Tensor, but got {kind.__name__}" + (_FX if traced else "")
            )
        if tensor.layout != torch.strided:
            raise TypeError(
                f"{name} must be a dense tensor, but got {tensor.layout}; "
                "convert it with .to_dense()"
            )
        if tensor.dtype != input.dtype:
            raise DtypeError(
                f"Input type ({input.dtype}) and {name} type ({tensor.dtype}) should be the same"
            )
        if tensor.device != input.device:
            raise ArgumentError(
                f"Expected all tensors to be on the same device, but input is on {input.device} "
                f"and {name} on {tensor.device}; move one with .to()"
            )
    raise DtypeError(f"input must have one of the dtypes {DTYPES}, but got {input.dtype}")
