"""``optimize_for_inference``: BatchNorm folded into the convolution before it, ReLU fused."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sparseconv._called_whole import called_whole
from sparseconv._hooks import has_own_code
from sparseconv.functional import sparse_conv1d
from sparseconv.models.dsn import ShortAvgPool1d
from sparseconv.modules import SparseConv1d


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Copy a trained model into a faster one for inference.

    In every ``nn.Sequential`` the ``BatchNorm1d`` that follows a ``SparseConv1d`` or an
    ``nn.Conv1d`` is folded into its weights and bias, and the ``ReLU`` that follows a
    ``SparseConv1d`` is computed where the kernel stores its outputs. Where a global average
    follows a 1x1 ``nn.Conv1d``, perhaps with an ``AdaptiveAvgPool1d`` before it, the average is
    taken first. All other modules, their names and their hooks are kept. The outputs differ from those of ``model.eval()`` by rounding.

    Left as it is, because merging could change the result: a module that hangs in several places
    of the model or has hooks or its own ``forward``; a BatchNorm without running statistics, or
    that stays in training mode; a BatchNorm of another size or dtype; subclasses; any other
    activation; neighbours in a Sequential that ``model(x)`` does not always run whole (it indexes,
    slices, counts or loops over it, a module around it has hooks or keeps modules in a list of its
    own, or a ``forward`` around it cannot be read, as one that loops over a ``ModuleList``).

    Args:
        model: any module; left exactly as it is.

    Returns:
        A copy in eval mode whose parameters ask for no gradient. It can be copied, pickled, saved
        and loaded (into a copy made in the same way). Merged layers refuse ``train()``: train
        ``model`` and make a new copy.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        ValueError: a parameter or buffer holds no data: on the meta device, or of a lazy module
            that has not run yet. A convolution with a folded BatchNorm raises it for input without
            a batch dimension, which BatchNorm takes for N = C cases of L channels.

    Example:
        >>> model = nn.Sequential(SparseConv1d(2, 3, 5), nn.BatchNorm1d(3), nn.ReLU())
        >>> optimize_for_inference(model)
        Sequential(
          (0): SparseConv1d(2, 3, kernel_size=(5,), stride=(1,), nnz=6, density=20.00 %, norm=folded, activation=relu)
        )

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2 (folding).
    """  # noqa: E501 (what it prints)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or is_lazy(tensor):
            raise ValueError(
                f"every parameter and buffer must hold data, but {name} does not; load the model's "
                "state, or run it once if it has lazy modules"
            )
    # What is made in inference mode could not be used outside of it.
    with torch.inference_mode(False), torch.no_grad():
        fast = _copied(model).eval()
        for parameter in fast.parameters():  # requires_grad_() refuses ScriptModules
            parameter.requires_grad_(False)
        places = Counter(id(m) for _, m in fast.named_modules(remove_duplicate=False))
        for sequential in called_whole(fast):
            if places[id(sequential)] == 1:
                _merge_neighbours(sequential, places)
                _average_first(sequential, places)
    return fast


def _copied(model: nn.Module) -> nn.Module:
    # Pruning and weight_norm keep a computed tensor as an attribute, which deepcopy refuses.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed)


def _merge_neighbours(sequential: nn.Sequential, places: Counter[int]) -> None:
    names = list(sequential._modules)
    for name in names:
        conv = sequential._modules.get(name)
        if not _is_foldable(conv) or places[id(conv)] > 1:
            continue
        following = iter(names[names.index(name) + 1 :])
        merged: SparseConv1d | nn.Conv1d = conv
        gone = []
        after = next(following, None)
        norm = None if after is None else sequential._modules[after]
        if after is not None and _fits(norm, conv) and places[id(norm)] == 1:
            folded = _fold(conv, norm)
            if folded is not None:
                merged = folded
                gone.append(after)
                after = next(following, None)
        relu = None if after is None else sequential._modules[after]
        # A ReLU has no state: the same one may stand in many places.
        fusable = type(relu) is nn.ReLU and not has_own_code(relu)
        if after is not None and fusable and isinstance(merged, SparseConv1d):
            merged = _InferenceSparseConv1d.of(merged)
            merged.relu = True
            gone.append(after)
        if gone:
            # Replaced, not changed: who else holds the old layer still gets its old result.
            sequential._modules[name] = merged
            for other in gone:
                del sequential._modules[other]


def _is_foldable(module: nn.Module | None) -> TypeGuard[SparseConv1d | nn.Conv1d]:
    return type(module) in (SparseConv1d, nn.Conv1d) and not has_own_code(module)  # type: ignore[arg-type]


def _fits(norm: nn.Module | None, conv: SparseConv1d | nn.Conv1d) -> TypeGuard[nn.BatchNorm1d]:
    weight = next(conv.parameters())
    return (
        type(norm) is nn.BatchNorm1d
        and not has_own_code(norm)
        and norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_features == conv.out_channels
        and all((t.dtype, t.device) == (weight.dtype, weight.device)
                for t in (norm.running_mean, norm.weight) if t is not None)
    )  # fmt: skip


def _fold(
    conv: SparseConv1d | nn.Conv1d, norm: nn.BatchNorm1d
) -> _InferenceSparseConv1d | _InferenceConv1d | None:
    """A layer that computes ``norm(conv(x))``, or None if its weights would not be finite."""
    if isinstance(conv, nn.Conv1d):
        dense = fuse_conv_bn_eval(conv, norm)
        dense.__class__ = _InferenceConv1d
        assert isinstance(dense, _InferenceConv1d)
        finite = dense.weight.isfinite().all() and dense.bias.isfinite().all()  # type: ignore[union-attr]
        return dense.requires_grad_(False) if finite else None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In float64, so that each new weight and bias is rounded once.
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale *= norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if conv.bias is not None:
        shift += conv.bias.double() * scale
    if norm.bias is not None:
        shift += norm.bias.double()
    of_row = conv.pattern.crow_indices[:: conv.pattern.shape[1]].long().diff().to(scale.device)
    dtype = conv.values.dtype
    values = (conv.values.double() * scale.repeat_interleave(of_row)).to(dtype)
    bias = shift.to(dtype)
    if not (values.isfinite().all() and bias.isfinite().all()):
        return None
    folded = _InferenceSparseConv1d.of(conv)
    folded.values = nn.Parameter(values, requires_grad=False)
    folded.bias = nn.Parameter(bias, requires_grad=False)
    folded.normalized = True
    return folded


def _average_first(sequential: nn.Sequential, places: Counter[int]) -> None:
    """A 1x1 convolution is the same map at every position: only the mean has to pass it."""
    names = list(sequential._modules)
    for before, name, after in zip(["", *names], names, names[1:], strict=False):
        conv = sequential._modules.get(name)  # None: merged with the one before
        if not (
            isinstance(conv, nn.Conv1d)
            and type(conv) in (nn.Conv1d, _InferenceConv1d)
            and not has_own_code(conv)
            and places[id(conv)] <= 1  # 0: folded just now
            and conv.groups == 1
            and conv.kernel_size == conv.stride == (1,)
            and conv.padding in ((0,), "same", "valid")
            and conv.weight.dtype in (torch.float32, torch.float64)
            and _pooled_size(sequential._modules.get(after)) == 1
        ):
            continue
        bins = _pooled_size(sequential._modules.get(before))
        sequential._modules[name] = _InferencePointwiseOfMean(conv, bins)
        del sequential._modules[after]
        if bins is not None:
            del sequential._modules[before]


def _pooled_size(module: nn.Module | None) -> int | None:
    if not isinstance(module, nn.AdaptiveAvgPool1d) or has_own_code(module):
        return None
    if type(module) not in (nn.AdaptiveAvgPool1d, ShortAvgPool1d):
        return None
    size = module.output_size
    size = size[0] if isinstance(size, tuple) and len(size) == 1 else size
    return size if isinstance(size, int) and size > 0 else None


@functools.lru_cache(maxsize=256)
def _mean_of_bins(length: int, bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(length,)``: what each sample counts in the mean over ``bins`` adaptive averages."""
    with torch.inference_mode(False), torch.no_grad():
        weights = torch.zeros(length, dtype=torch.float64, device="cpu")
        for i in range(bins):
            first, end = i * length // bins, -((-(i + 1) * length) // bins)
            weights[first:end] += 1 / (bins * (end - first))
        return weights.to(device, dtype)


class _Merged(nn.Module):
    """What all layers share that stand for several modules."""

    normalized = False  # a BatchNorm1d is folded in
    relu = False

    def train(self, mode: bool = True) -> _Merged:
        if mode:
            raise RuntimeError(
                "optimize_for_inference() merged this layer with the modules behind it, so it "
                "cannot be trained; call eval() again, for modules before it are in training mode "
                "now; train the model that this one was made from and optimize that again"
            )
        return super().train(mode)

    def _get_name(self) -> str:
        return type(self).__name__.removeprefix("_Inference")

    def extra_repr(self) -> str:
        said = ["norm=folded"] * self.normalized + ["activation=relu"] * self.relu
        return ", ".join([super().extra_repr(), *said])

    def _check(self, input: Tensor) -> None:
        # An unbatched (C, L) would be N = C cases of L channels for BatchNorm1d.
        if self.normalized and input.dim() != 3:
            raise ValueError(
                "expected 3D input (N, C, L) to a convolution with a folded BatchNorm1d, "
                f"but got {input.dim()}D input; add the batch dimension with unsqueeze(0)"
            )


class _InferenceSparseConv1d(_Merged, SparseConv1d):
    """A ``SparseConv1d`` with the BatchNorm1d and the ReLU that followed it."""

    @classmethod
    def of(cls, layer: SparseConv1d) -> _InferenceSparseConv1d:
        merged = copy.deepcopy(layer)
        merged.__class__ = cls
        assert isinstance(merged, cls)
        return merged

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        return sparse_conv1d(
            input,
            self.values,
            self.pattern,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            backend=self.backend,
            relu=self.relu,
        )

    def to_dense(self) -> nn.Conv1d:
        if self.relu:
            raise NotImplementedError(
                "a layer with a fused ReLU is no nn.Conv1d; convert the model before "
                "optimize_for_inference()"
            )
        return super().to_dense()


class _InferenceConv1d(_Merged, nn.Conv1d):
    """An ``nn.Conv1d`` with the BatchNorm1d that followed it."""

    normalized = True

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        return super().forward(input)


class _InferencePointwiseOfMean(_Merged):
    """A 1x1 convolution of adaptive averages and the global average behind it: the mean first."""

    def __init__(self, conv: nn.Conv1d, bins: int | None) -> None:
        super().__init__()
        self.conv, self.bins = conv, bins
        self.eval()

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C, L)`` to ``(N, C_out, 1)``, and ``(C, L)`` to ``(C_out, 1)``."""
        conv, shape = self.conv, input.shape
        if isinstance(conv, _Merged):
            conv._check(input)
        if len(shape) not in (2, 3) or shape[-2] != conv.in_channels or shape[-1] == 0:
            raise ValueError(
                f"expected input of shape (N, {conv.in_channels}, L) or ({conv.in_channels}, L) "
                f"with L >= 1, but got {tuple(shape)}"
            )
        mean = input @ _mean_of_bins(shape[-1], self.bins or 1, input.dtype, input.device)
        return F.linear(mean, conv.weight[:, :, 0], conv.bias).unsqueeze(-1)

    def extra_repr(self) -> str:
        return f"bins={self.bins}"
