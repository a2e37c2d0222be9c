"""Compute dgrad for inputs padded with their own samples, using kernels that pad with zeros."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry


def folds_padding(dgrad: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Add the gradients of the padding to those of the samples that it repeats.

    The wrapped ``dgrad`` computes the gradient of the padded input. Sums use at least float32.
    """

    @functools.wraps(dgrad)
    def folded(
        grad_output: Tensor,
        values: Tensor,
        crow: Tensor,
        col: Tensor,
        geometry: Any,
        input_length: int,
        bias: Tensor | None = None,
    ) -> Tensor:
        if not any(geometry[4:6]) or tuple(geometry[8:9]) == (0,):  # skips checking the geometry
            return dgrad(grad_output, values, crow, col, geometry, input_length, bias)
        if bias is not None:
            raise ValueError(f"a bias requires padding_mode 'zeros', but got geometry {geometry}")
        g = Geometry.from_numbers(geometry)
        g.check_length(input_length)
        left, right = g.padding
        wide = torch.promote_types(grad_output.dtype, torch.float32)
        bare = g._replace(left=0, right=0, mode=0)
        length = left + input_length + right
        padded = dgrad(grad_output.to(wide), values.to(wide), crow, col, bare, length)
        before, after = padded[..., :left], padded[..., left + input_length :]
        out = padded[..., left : left + input_length].clone()
        if g.padding_mode == "replicate":
            out[..., 0] += before.sum(2)
            out[..., -1] += after.sum(2)
        elif g.padding_mode == "reflect":
            out[..., 1 : left + 1] += before.flip(2)
            out[..., input_length - 1 - right : input_length - 1] += after.flip(2)
        else:
            out[..., input_length - left :] += before
            out[..., :right] += after
        return out.to(grad_output.dtype)

    return folded
