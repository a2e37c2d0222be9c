"""What ``SparseConvTranspose1d`` and ``sparse_conv_transpose1d`` refuse, as torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from refusals import refusals
from torch import nn

from sparseconv import KernelCSR, SparseConvTranspose1d, sparse_conv_transpose1d

X = torch.randn(2, 4, 9)
PATTERN = KernelCSR.full((4, 3, 5))
VALUES = torch.randn(60)


def make(**options: Any) -> Callable[[], Any]:
    given = {"in_channels": 4, "out_channels": 6, "kernel_size": 5} | options
    return lambda: SparseConvTranspose1d(**given)


def call(x: Any = X, bias: Any = None, pattern: Any = PATTERN, **options: Any) -> Callable[[], Any]:
    return lambda: sparse_conv_transpose1d(x, VALUES, pattern, bias, **options)


def sized(*size: int) -> Callable[[], Any]:
    return lambda: make(stride=3)()(X, output_size=size)


test_what_torch_refuses = refusals(
    (make(groups=3), ValueError, "in_channels must be divisible by groups"),
    (make(groups=4), ValueError, "out_channels must be divisible by groups"),
    (make(padding_mode="reflect"), ValueError, 'Only "zeros" padding mode is supported for Sparse'),
    (make(stride=0), RuntimeError, "non-positive stride is not supported"),
    (make(output_padding=1), RuntimeError, "output padding must be smaller than either stride or"),
    (make(padding="same"), TypeError, "padding must be an int or a tuple of one int, but got 'sa"),
    (call(padding=-1), RuntimeError, "negative padding is not supported"),
    (call(output_padding=-1), RuntimeError, "negative output_padding is not supported"),
    (call(output_padding=3, stride=2, dilation=3), RuntimeError, "either stride or dilation, but"),
    (call(dilation=0), RuntimeError, "dilation should be greater than zero"),
    (call(groups=0), RuntimeError, "non-positive groups is not supported"),
    (call(groups=3), RuntimeError, "Given groups=3, expected weight to be divisible by 3 at dim"),
    (call(groups=8), RuntimeError, "Given groups=8, expected weight to be at least 8 at dimension"),
    (call(padding=(1, 2)), TypeError, "tuple of one int, but got (1, 2)"),
    (call(padding=7), RuntimeError, "Output size is too small"),
    (call(X[:, :3]), RuntimeError, "Given transposed=1, weight of size [4, 3, 5], expected input[2,"
     " 3, 9] to have 4 channels, but got 3 channels instead"),
    (call(bias=torch.ones(4)), RuntimeError, "Given transposed=1, weight of size [4, 3, 5], expect"
     "ed bias to be 1-dimensional with 3 elements, but got bias of size [4] instead"),
    (call(X[0, 0]), RuntimeError, "Expected 2D (unbatched) or 3D (batched) input to sparse_conv_"),
    (call(X[..., :0]), RuntimeError, "but got input of size: [2, 4, 0]"),
    (sized(6, 31), ValueError, "output_size must have 1 or 3 elements (got 2)"),
    (sized(32), ValueError, "valid sizes range from [29] to [31]"),
)  # fmt: skip


test_what_only_sparse_layers_refuse = refusals(
    (call(pattern=PATTERN.to_mask()), TypeError, "pattern must be a KernelCSR, but got Tensor"),
    (call(X.numpy()), TypeError, "input must be a Tensor, but got ndarray"),
    (call(X.double()), TypeError, "values type (torch.float32) should be the same"),
    (make(pattern=KernelCSR.full((6, 4, 5))), ValueError, "here (4, 6, 5), but got (6, 4, 5)"),
    (lambda: make()().weight, AttributeError, "SparseConvTranspose1d has no 'weight', only"),
    (lambda: SparseConvTranspose1d.from_dense(nn.Conv1d(1, 1, 1)), TypeError, "nn.ConvTranspose1d"),
)  # fmt: skip
