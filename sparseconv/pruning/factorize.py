"""Replace convolutions with low-rank factors, some of them shared between layers."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sparseconv.core.checks import count, number
from sparseconv.core.modules import (
    bonds_of,
    check_not_wrapped,
    computes_as,
    deepcopy_model,
    replace,
)
from sparseconv.measure.records import Counts
from sparseconv.nn.conv import SparseConv1d
from sparseconv.pruning.report import Change, Smaller, SmallerNetwork
from sparseconv.running import copied_arguments

Method = Literal["left", "right", "both", "svd"]
METHODS: tuple[Method, ...] = get_args(Method)
ALTERNATIONS = 30  # for "both", as published
WEIGHT = ("shape", "dtype", "device", "requires_grad")
OPTIONS = ("stride", "padding", "dilation", "padding_mode")

# Factors of the weights (N, O, I*K) of N layers: (N, O, r) and (N, r, I*K), where N is 1 if shared.
Factors = tuple[Tensor, Tensor]


class Sum(nn.Module):
    """Add a bias ``(C,)`` and the outputs ``(..., C, L)`` of several modules for the same input."""

    def __init__(self, terms: Iterable[nn.Module], bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.bias = bias

    def forward(self, input: Tensor) -> Tensor:
        first, *others = self.terms
        y: Tensor = first(input)
        for term in others:
            y = y + term(input)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None]


@torch.inference_mode(False)  # inference tensors could not be trained later
def factorize(
    model: nn.Module,
    example_input: Any = None,
    *,
    layers: Iterable[Iterable[str]] | None = None,
    method: Method = "left",
    rank: int | None = None,
    parameter_compression: float | None = None,
) -> Smaller:
    """Copy a model; replace each convolution with two smaller ones, one shared between layers.

    A layer with a weight ``(O, I, K)`` becomes a ``Sequential`` of ``taps`` (K taps, ``rank``
    channels, the layer's options) and ``pointwise``, a 1x1 convolution to O channels. Let U and V
    be their weights, r the rank, and n = 1 .. N the layers of a set:

    - ``"left"``: ``W^n ~ U V^n``, the same ``taps`` in all layers; ``r (I K + N O)`` weights.
    - ``"right"``: ``W^n ~ U^n V``, the same ``pointwise`` in all layers; ``r (N I K + O)`` weights.
    - ``"both"``: ``W^n ~ U^n V + U V^n``, a ``Sum`` of both; ``r (N + 1) (I K + O)`` weights. The
      better of the two is fitted first; then each is fitted 30 times to the other's residual.
    - ``"svd"``: ``W ~ U V``, each layer separately; ``r (I K + O)`` weights.

    The squared error of the weights is the smallest possible for the rank; with ``"both"``, it may
    be a local minimum. Fine-tune the copy with a new optimizer.

    Args:
        model: any module, before ``torch.compile``; it is left unchanged.
        example_input: the input for ``report.measure()``.
        layers: sets of names of ``nn.Conv1d`` layers with equal shapes and options. By default, all
            equal layers form a set if there are several and they get smaller (with ``"svd"``, each
            layer that gets smaller is a set).
        rank: the rank r of every set.
        parameter_compression: instead of a rank, the minimum ratio of parameters before to after
            in each set.

    Raises:
        TypeError, ValueError: a set has unequal or too few layers, or one that cannot be replaced;
            both or neither of ``rank`` and ``parameter_compression`` are given, or the weights do
            not allow the value; no layer gets smaller.

    Example:
        >>> import sparseconv as sc
        >>> model = nn.Sequential(*(nn.Conv1d(32, 32, 20, padding="same") for _ in range(5)))
        >>> small, report = sc.factorize(model, parameter_compression=4)
        >>> small[0].taps
        Conv1d(32, 31, kernel_size=(20,), stride=(1,), padding=same, bias=False)
        >>> small[0].taps is small[4].taps, small[0].pointwise is small[4].pointwise
        (True, False)
        >>> report.layers[0].parameters
        Counts(before=102560, after=24960)

    Source: Chen, Zhou, Sun, Huang, "Joint Matrix Decomposition for Deep Convolutional Neural
    Networks Compression", arXiv 2107.04386, 2021.
    """
    check_not_wrapped(model, "factorize")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, but got {method!r}")
    compression = parameter_compression
    if (rank is None) == (compression is None):
        raise ValueError(
            f"expected either rank or parameter_compression, but got rank={rank}, "
            f"parameter_compression={compression}"
        )
    rank = None if rank is None else count("rank", rank)
    if compression is not None:
        compression = number("parameter_compression", compression)
        if not compression > 1:
            raise ValueError(f"parameter_compression must be above 1, but got {compression}")
    arguments = None if example_input is None else copied_arguments(model, example_input)
    twin = deepcopy_model(model)
    successors: dict[nn.Module, nn.Module] = {}
    records: list[Change] = []
    left: dict[str, str] = {}
    for names, convs, obstacle in _sets(twin, layers, method):
        try:
            if obstacle or successors.keys() & set(convs) or len(set(convs)) < len(convs):
                raise ValueError(obstacle or "a layer may be named only once")
            if not all(conv.weight.isfinite().all() for conv in convs):
                raise ValueError("the weights must be finite, but contain NaN or infinity")
            r, parameters = _sizes(convs, method, rank, compression)
            if layers is None and parameters.after >= parameters.before:
                raise ValueError(
                    f"rank {r} turns {parameters.before} parameters into {parameters.after}; "
                    "choose a lower rank"
                )
        except ValueError as error:
            if layers is not None:
                raise ValueError(f"{list(names)}: {error}") from None
            left |= dict.fromkeys(names, str(error))
            continue
        weights = torch.stack([conv.weight.detach().cpu().double().flatten(1) for conv in convs])
        pairs = [[x.to(convs[0].weight.dtype) for x in p] for p in _factors(weights, method, r)]
        rest = weights - sum(p.double() @ q.double() for p, q in pairs)
        n, o, m = weights.shape
        records.append(
            Change(
                name=", ".join(names), layers=names, rank=r, parameters=parameters,
                relative_error=float(rest.norm() / weights.norm()) if weights.any() else 0.0,
                # Sharing saves no multiply-adds: each layer computes the shared factor.
                macs=Counts(n * o * m, len(pairs) * n * r * (m + o)),
            )
        )  # fmt: skip
        successors |= zip(convs, _modules(convs, pairs), strict=True)
    if not records:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in left.items())
        raise ValueError(
            f"expected a layer that gets smaller, but found none; "
            f"{reasons or 'the model has no nn.Conv1d'}"
        )
    small = replace(twin, successors)
    parameters = Counts(*(sum(p.numel() for p in m.parameters()) for m in (model, small)))
    report = SmallerNetwork(method=method, layers=tuple(records), left=left,
                            parameters=parameters, before=model, after=small,
                            arguments=arguments)  # fmt: skip
    return Smaller(small, report)


def _sizes(
    convs: Sequence[nn.Conv1d], method: str, rank: int | None, compression: float | None
) -> tuple[int, Counts]:
    """Return the rank of a set, and its number of parameters before and after."""
    n, o, m = len(convs), convs[0].out_channels, math.prod(convs[0].weight.shape[1:])
    counts = {"left": [(n, 1)], "right": [(1, n)], "both": [(n, 1), (1, n)], "svd": [(1, 1)]}
    per_rank = sum(pointwise * o + taps * m for pointwise, taps in counts[method])
    most = min(min(pointwise * o, taps * m) for pointwise, taps in counts[method])
    biases = sum(conv.bias.numel() for conv in convs if conv.bias is not None)
    before = n * o * m + biases
    if compression is not None:
        rank = min(int((before / compression - biases) // per_rank), most)
        if rank < 1:
            raise ValueError(
                f"expected a parameter_compression of at most {before / (biases + per_rank):.4g}, "
                f"which rank 1 achieves, but got {compression:g}"
            )
    assert rank is not None
    if rank > most:
        raise ValueError(f"expected a rank of at most {most} for these weights, but got {rank}")
    return rank, Counts(before, biases + rank * per_rank)


def _left(weights: Tensor, rank: int) -> Factors:
    n, o, m = weights.shape
    u, s, v = torch.linalg.svd(weights.reshape(n * o, m), full_matrices=False)
    # Our choice: each factor takes the square root of the singular values.
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).reshape(n, o, rank), (root[:, None] * v[:rank])[None]


def _right(weights: Tensor, rank: int) -> Factors:
    taps, pointwise = _left(weights.mT, rank)
    return pointwise.mT, taps.mT


def _factors(
    weights: Tensor, method: str, rank: int, alternations: int = ALTERNATIONS
) -> list[Factors]:
    n, o, m = weights.shape
    if n * o < m:  # in a basis of the row space, the matrices to decompose are smaller
        basis, rows = torch.linalg.qr(weights.reshape(n * o, m).T)
        small = _factors(rows.T.reshape(n, o, n * o), method, rank, alternations)
        return [(p, q @ basis.T) for p, q in small]
    if method == "right":
        return [_right(weights, rank)]
    first = _left(weights, rank)
    if method != "both":
        return [first]
    # Our choice: start from the better of the two.
    fit, fit_other, other = _left, _right, _right(weights, rank)
    if (weights - other[0] @ other[1]).norm() < (weights - first[0] @ first[1]).norm():
        fit, fit_other, first = _right, _left, other
    for _ in range(alternations):
        other = fit_other(weights - first[0] @ first[1], rank)
        first = fit(weights - other[0] @ other[1], rank)
    return [first, other]


def _modules(convs: Sequence[nn.Conv1d], pairs: Sequence[Sequence[Tensor]]) -> list[nn.Module]:
    """Build the modules that replace the layers and take over their biases."""
    options = {name: getattr(convs[0], name) for name in OPTIONS}
    made = [
        (
            [_conv(p[:, :, None], convs[0], {}) for p in pointwise],
            [_conv(q.unflatten(1, convs[0].weight.shape[1:]), convs[0], options) for q in taps],
        )
        for pointwise, taps in pairs
    ]
    successors: list[nn.Module] = []
    for n, conv in enumerate(convs):
        terms, bias = [], conv._parameters["bias"]
        for pointwise, taps in made:
            last = pointwise[n % len(pointwise)]  # the only one, where it is shared
            if len(pointwise) == len(convs):
                last.bias, bias = bias, None
            terms.append(nn.Sequential(OrderedDict(taps=taps[n % len(taps)], pointwise=last)))
        whole = terms[0] if len(terms) == 1 and bias is None else Sum(terms, bias)
        successors.append(whole.train(conv.training))
    return successors


def _conv(weight: Tensor, like: nn.Conv1d, options: dict[str, Any]) -> nn.Conv1d:
    outputs, inputs, taps = weight.shape
    # On the meta device nothing is drawn, so torch's generator keeps its state.
    conv = nn.Conv1d(inputs, outputs, taps, bias=False, device="meta", **options)
    own = weight.to(like.weight.device, copy=True, memory_format=torch.contiguous_format)
    conv.weight = nn.Parameter(own, like.weight.requires_grad)
    return conv


def _sets(
    model: nn.Module, layers: Iterable[Iterable[str]] | None, method: str
) -> Iterator[tuple[tuple[str, ...], list[Any], str | None]]:
    """Yield each set: names, layers and, if it cannot be factorized, the reason."""
    found: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    obstacle = partial(_obstacle, bond=bonds_of(model))
    if searched := layers is None:
        equal: dict[Any, list[str]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv1d | SparseConv1d):
                alone = method == "svd" or obstacle(module)
                equal.setdefault(name if alone else _common(module), []).append(name)
        layers = equal.values()
    for names in map(tuple, layers):
        if unknown := [name for name in names if name not in found]:
            known = [name for name, module in found.items() if isinstance(module, nn.Conv1d)]
            raise ValueError(f"layers must be lists of names from {known}, but got {unknown[0]!r}")
        convs = [found[name] for name in names]
        reasons = (
            why and (f"{name!r} {why}" if len(names) > 1 else f"it {why}")
            for name, why in zip(names, map(obstacle, convs), strict=True)
        )
        reason = next(filter(None, reasons), None)
        if reason is None and (not names or (len(names) == 1) != (method == "svd")):
            reason = "a set must have one layer for method='svd', and several for any other method"
            if searched:
                reason = "no other layer has its shape and options; 'svd' accepts single layers"
        if reason is None and len({_common(conv) for conv in convs}) > 1:
            same = ", ".join(WEIGHT + OPTIONS)
            reason = f"the layers must have the same {same}; put them in different sets"
        yield names, convs, reason


def _common(conv: Any) -> tuple[Any, ...]:
    of_weight = (getattr(conv.weight, name) for name in WEIGHT)
    return (*of_weight, *(getattr(conv, name) for name in OPTIONS))


def _obstacle(layer: Any, bond: Callable[[nn.Module, Tensor], str | None]) -> str | None:
    if isinstance(layer, nn.Conv1d) and not {"weight", "bias"} <= layer._parameters.keys():
        return "has a computed weight or bias; first remove the pruning or parametrization"
    if type(layer) is not nn.Conv1d:
        sparse = layer is not None and computes_as(layer, SparseConv1d)
        hint = "; convert it with sc.to_dense" if sparse else ""
        return f"must be an nn.Conv1d, but is a {type(layer).__name__}{hint}"
    if layer.groups != 1:
        return f"must have groups=1, but has {layer.groups}; leave out this layer"
    if own := vars(layer).keys() & {"forward", "_conv_forward"}:
        return (
            f"has its own {own.pop()}, which would be lost; move that code into a separate module"
        )
    return bond(layer, layer.weight)
