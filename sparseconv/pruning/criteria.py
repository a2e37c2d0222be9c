"""Which filters matter least: what ``prune_filters`` asks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.checks import number
from sparseconv.core.geometry import single
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.restored import restored_afterwards
from sparseconv.pruning.channels import Channels, Layer, UnitSet

Loss = Callable[[Tensor, Tensor], Tensor]
BATCH = 64  # series, where data are whole arrays
EPS = 1e-2  # of DSP


class Criterion(ABC):
    """Scores the units of a network: the higher, the more they matter.

    Attributes:
        everywhere: scores of all layers compare with each other; else the same share of each
            layer's filters goes.
        threshold: units of at most this score go; None where a ratio says how many.
    """

    everywhere = False
    threshold: float | None = None

    @abstractmethod
    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        """``(n_units,)`` float64, finite; the model is left as it was."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Magnitude(Criterion):
    """The p-norm of a filter's weights.

    What falls with a filter counts as part of it: its counterparts in the layers that are added to
    its own, and the taps that a depthwise layer has for it.

    Args:
        p: of the norm, at least 1.

    Raises:
        TypeError, ValueError: another ``p``.

    Example:
        >>> Magnitude(p=1)
        Magnitude(p=1.0)

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017.
    """

    def __init__(self, p: float = 2) -> None:
        self.p = number("p", p)
        if not 1 <= self.p < float("inf"):
            raise ValueError(f"p must be finite and at least 1, but got {p}")

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        return _by_set(channels, lambda filters: filters.norm(self.p, dim=1))

    def __repr__(self) -> str:
        return f"Magnitude(p={self.p})"


class HC(Criterion):
    """Hybrid criterion: the norm of a filter times its dissimilarity to its layer's others.

    ``|F_i| * sum over j != i of (1 - |cos(F_i, F_j)|)``, without data.

    Source: Chen et al., "WHC: Weighted Hybrid Criterion for Filter Pruning on Convolutional Neural
    Networks", ICASSP 2023 (its ablation).
    """

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        return _by_set(channels, lambda filters: _dissimilar(filters)[1].sum(1))


class WHC(Criterion):
    """Weighted hybrid criterion: as ``HC``, where large filters weigh more in the comparison.

    ``|F_i| * sum over j != i of |F_j| * (1 - |cos(F_i, F_j)|)``, without data.

    Source: Chen et al., "WHC: Weighted Hybrid Criterion for Filter Pruning on Convolutional Neural
    Networks", ICASSP 2023.
    """

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        def weighted(filters: Tensor) -> Tensor:
            norms, dissimilar = _dissimilar(filters)
            return dissimilar @ norms

        return _by_set(channels, weighted)


class Jacobian(Criterion):
    """How much the loss feels a filter, with the interactions of its weights.

    For each layer that loses something with the filter (its own taps, the next layers' input
    channel, the pair of BatchNorm) and each batch, the product of gradient and weights is added
    up and squared; the score is the sum of the squares. Filters of all layers compare.

    Args:
        data: ``(X, y)``, arrays of training series and class indices; or an iterable of batches
            ``(x, y)``, for example a ``DataLoader``.
        loss: of the model's output and the class indices, a scalar.
        batches: how many are used, at most.

    Source: Chen et al., "Optimal Brain Connection: Towards Efficient Structural Pruning", arXiv
    2508.05521.
    """

    everywhere = True

    def __init__(self, data: Any, loss: Loss = F.nll_loss, batches: int = 50) -> None:
        self.data, self.loss, self.batches = data, loss, single("batches", batches, 1)

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        found = torch.zeros(channels.n_units, dtype=torch.float64)
        parameters = dict(model.named_parameters())
        with evaluating(model), torch.enable_grad():
            for x, y in labelled(batches_of("Jacobian", self.data), self.batches):
                loss = self.loss(model(to_model(model, x)), y)
                grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                products = {
                    name: (torch.zeros_like(weight) if grad is None else grad * weight.detach())
                    for (name, weight), grad in zip(parameters.items(), grads, strict=True)
                }
                for name, layer in channels.layers.items():
                    for felt in _felt(name, layer, products, channels.n_units):
                        found += felt.square()
        return found


class DSP(Criterion):
    """Dynamic structured pruning: filters whose output stays near zero on every training series.

    A filter's activation is the root mean square over time of what the next layers read of it, its
    maximum over all series, as a share of the layer's largest; a filter of at most ``eps`` goes. No
    ratio is needed: train with ``InstanceSparsity``, which makes filters silent.

    Args:
        data: training series as an array ``(n_cases, n_channels, length)``, or ``(X, y)``; or an
            iterable of batches, ``x`` or ``(x, y)``.
        eps: share of the layer's largest activation. Not public; ``report.curve`` shows how many
            filters other values would keep.

    Source: Abdullayev et al., arXiv 2602.12744 (2026).
    """

    everywhere = True

    def __init__(self, data: Any, eps: float = EPS) -> None:
        self.data, self.threshold = data, number("eps", eps)
        if not 0 <= self.threshold < 1:
            raise ValueError(f"eps must lie in [0, 1), but got {eps}")

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        largest = {
            name: torch.zeros(len(layer.inputs), dtype=torch.float64)
            for name, layer in channels.layers.items()
        }

        def see(name: str) -> Callable[[nn.Module, Any], None]:
            def hook(_: nn.Module, arguments: Any) -> None:
                x = arguments[0].detach().double()
                squares = x.square().mean(-1) if x.dim() == 3 else x.square()
                largest[name] = torch.maximum(largest[name], squares.amax(0).cpu())

            return hook

        with evaluating(model), torch.no_grad(), ExitStack() as stack:
            for name in largest:
                module = model.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(see(name)).remove)
            for batch in batches_of("DSP", self.data):
                model(to_model(model, batch[0] if isinstance(batch, tuple | list) else batch))
        found = torch.zeros(channels.n_units, dtype=torch.float64)
        for group in channels.sets:
            for name, columns in channels.columns(group.units):
                share = largest[name][columns].mean(1).sqrt() / largest[name].max().sqrt()
                found[group.units] = torch.maximum(found[group.units], share.nan_to_num(0))
        return found

    def __repr__(self) -> str:
        return f"DSP(eps={self.threshold})"


def filters_of(channels: Channels, group: UnitSet) -> Tensor:
    """``(n, p)`` float64: all weights of each unit, of every layer that has some for it."""
    parts = []
    for name, rows in group.rows.items():
        module = channels.layers[name].module
        weight: Any = module.dense_weight() if isinstance(module, SparseConv1d) else module.weight
        weight = weight.detach().double().cpu().flatten(1)
        parts.append(weight[rows].flatten(1))
    return torch.cat(parts, dim=1)


def batches_of(owner: str, data: Any, size: int = BATCH) -> Iterable[Any]:
    """Batches of ``(X, y)``, of X alone, or those that an iterable has."""
    arrays = data if isinstance(data, tuple) else (data,) if hasattr(data, "shape") else None
    if arrays is None:
        if not hasattr(data, "__iter__"):
            raise TypeError(
                f"{owner} expected data as (X, y) or an iterable of batches, but got "
                f"{type(data).__name__}"
            )
        return data  # type: ignore[no-any-return]
    tensors = [torch.as_tensor(array) for array in arrays]
    if len({len(tensor) for tensor in tensors}) > 1 or not 1 <= len(tensors) <= 2:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(f"{owner} expected (X, y) of as many cases each, but got shapes {shapes}")
    if not len(tensors[0]):
        raise ValueError(f"{owner} expected at least one case, but got none")
    return list(zip(*(torch.split(tensor, size) for tensor in tensors), strict=True))


def labelled(batches: Iterable[Any], most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches, each of which must be ``(x, y)``."""
    count = 0
    for batch in batches:
        if count == most:
            return
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError("expected batches (x, y), series with their labels, but got others")
        yield torch.as_tensor(batch[0]), torch.as_tensor(batch[1])
        count += 1
    if not count:
        raise ValueError("expected at least one batch, but the data hold none")


def to_model(model: nn.Module, x: Any) -> Tensor:
    """Series in the model's dtype, on its device."""
    return torch.as_tensor(x).to(next(model.parameters()))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    with restored_afterwards(model):
        model.eval()
        yield


def _by_set(channels: Channels, score: Callable[[Tensor], Tensor]) -> Tensor:
    found = torch.zeros(channels.n_units, dtype=torch.float64)
    for group in channels.sets:
        found[group.units] = score(filters_of(channels, group))
    return found


def _dissimilar(filters: Tensor) -> tuple[Tensor, Tensor]:
    """The norms, and ``(n, n)`` of ``norm_i * (1 - |cos|)``, 0 on the diagonal."""
    norms = filters.norm(dim=1)
    unit = filters / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]
    dissimilar = (1 - (unit @ unit.T).abs()).clamp_min(0).fill_diagonal_(0)
    return norms, norms[:, None] * dissimilar


def _felt(name: str, layer: Layer, products: dict[str, Tensor], n_units: int) -> Iterator[Tensor]:
    """For each part that a layer has of the units, the sum of its products, ``(n_units,)``."""
    module, prefix = layer.module, f"{name}." if name else ""
    own = {
        key: products[prefix + key].double().cpu()
        for key, _ in module.named_parameters(recurse=False)
    }
    outputs = torch.zeros(len(layer.outputs), dtype=torch.float64)
    inputs = torch.zeros(len(layer.inputs), dtype=torch.float64)
    each, filters = len(layer.inputs) // layer.groups, len(layer.outputs) // layer.groups
    if isinstance(module, SparseConv1d):
        kernel = module.pattern.positions() // module.pattern.shape[2]
        row, column = kernel // each, kernel % each
        outputs.index_add_(0, row, own["values"])
        inputs.index_add_(0, row // filters * each + column, own["values"])
    elif layer.has_filters:
        weight = own["weight"].reshape(layer.groups, filters, each, -1)
        outputs += weight.sum((2, 3)).view(-1)
        inputs += weight.sum((1, 3)).view(-1)
    elif "weight" in own:
        outputs += own["weight"]
    if "bias" in own:
        outputs += own["bias"]
    yield _per_unit(outputs, layer.outputs, n_units)
    if layer.has_filters and not layer.is_depthwise:
        yield _per_unit(inputs, layer.inputs, n_units)


def _per_unit(sums: Tensor, units: Tensor, n_units: int) -> Tensor:
    places = torch.where(units < 0, n_units, units)  # the last: channels that stay
    return torch.zeros(n_units + 1, dtype=torch.float64).index_add_(0, places, sums)[:n_units]
