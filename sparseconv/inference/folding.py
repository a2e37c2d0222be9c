"""Fold a BatchNorm into the weights of the convolution before it."""

from __future__ import annotations

from torch import Tensor, nn

from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.links import weight_and_bias
from sparseconv.nn.modules import own_parameters

Convolution = SparseConv1d | nn.Conv1d
Weights = tuple[Tensor, Tensor | None]


def fold(conv: Convolution, norm: nn.BatchNorm1d | nn.SyncBatchNorm) -> Weights | None:
    """Return the weight and bias with which ``conv`` computes ``norm(conv(x))`` in eval mode.

    Returns:
        The weight, with the shape of ``conv.values`` or ``conv.weight``, and a bias ``(C_out,)``;
        or None if sizes, dtypes or devices do not match, or if the result would not be finite.

    Example:
        >>> import torch
        >>> conv, norm = nn.Conv1d(1, 1, 1, bias=False), nn.BatchNorm1d(1, eps=0.0)
        >>> norm.running_var.fill_(4.0)
        tensor([4.])
        >>> with torch.no_grad():
        ...     weight, bias = fold(conv, norm)
        >>> torch.equal(weight, conv.weight / 2), bias
        (True, tensor([0.]))

    Source: see ``optimize_for_inference``.
    """
    own, affine = weight_and_bias(conv), own_parameters(norm, "weight", "bias")
    mean, var = norm._buffers.get("running_mean"), norm._buffers.get("running_var")
    counter = norm._buffers.get("num_batches_tracked")  # counts updates of these two
    if own is None or affine is None or mean is None or var is None or counter is None:
        return None
    weight, bias = own
    gamma, beta = affine
    per_channel = [t for t in (mean, var, gamma, beta, bias) if t is not None]
    if not all(
        type(t) in (Tensor, nn.Parameter) and (t.dtype, t.device) == (weight.dtype, weight.device)
        for t in (weight, *per_channel)
    ) or any(t.shape != (conv.out_channels,) for t in per_channel):
        return None
    # In float64, so that each new weight and bias is rounded once.
    scale = (var.double() + norm.eps).rsqrt()
    if gamma is not None:
        scale *= gamma.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift += bias.double() * scale
    if beta is not None:
        shift += beta.double()
    if isinstance(conv, SparseConv1d):
        if weight.shape != (conv.pattern.nnz,):
            return None
        of_row = conv.pattern.crow_indices[:: conv.pattern.shape[1]].long().diff()
        scale = scale.repeat_interleave(of_row.to(scale.device))
    elif weight.dim() != 3 or weight.shape[0] != conv.out_channels:
        return None
    else:
        scale = scale[:, None, None]
    weight = (weight.double() * scale).to(weight.dtype)
    shift = shift.to(weight.dtype)
    return (weight, shift) if weight.isfinite().all() and shift.isfinite().all() else None
