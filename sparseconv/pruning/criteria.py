"""Score how much each filter matters, for ``prune_filters``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.checks import count, number, share
from sparseconv.nn.conv import SparseConv1d
from sparseconv.pruning.channels import Channels, Layer, UnitSet, filters_first
from sparseconv.pruning.surgery import mask
from sparseconv.running import BATCH, batches_of, classes_of, evaluating, watching

Loss = Callable[[Tensor, Tensor], Tensor]
Error = Callable[[Tensor], float]  # the share of wrong classes, given the kept units (bool)
EPS = 1e-2  # the default of DSP


class Criterion(ABC):
    """Score the units of a network; units with higher scores matter more.

    Attributes:
        everywhere: whether scores are compared across layers; if not, each layer loses the same
            share of its filters.
        threshold: units with at most this score are removed; None if ``fraction`` or
            ``target_macs`` decides.
        graded: whether scores take more than two values, so that the choice of threshold matters.

    Example:
        >>> import sparseconv as sc
        >>> class LargestWeight(Criterion):
        ...     def scores(self, model, channels):
        ...         found = channels.zeros()
        ...         for units, rows in ((group.units, group.rows) for group in channels.sets):
        ...             for name, filters in rows.items():
        ...                 weight = channels.layers[name].module.weight.detach().abs()
        ...                 found[units] += weight[filters].flatten(1).amax(1)
        ...         return found
        >>> model, x = sc.models.ResNet(1, 2, nf=8), torch.zeros(1, 1, 50)
        >>> sc.prune_filters(model, x, LargestWeight(), fraction=0.5).report.parameters
        Counts(before=7842, after=2066)
    """

    everywhere = False
    threshold: float | None = None
    graded = True

    @abstractmethod
    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        """Return finite scores ``(n_units,)``, float64, and leave the model unchanged."""

    def __repr__(self) -> str:
        settings = [f"{key}={x}" for key, x in vars(self).items() if isinstance(x, int | float)]
        return f"{type(self).__name__}({', '.join(settings)})"


class Magnitude(Criterion):
    """Score a filter by the p-norm of its weights.

    The norm includes what is removed with the filter: its taps in a depthwise layer, and the
    filters of other layers whose outputs are added to its output.

    Args:
        p: the order of the norm, finite and at least 1.

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


class HC(Criterion):
    """Score a filter by its norm times its dissimilarity to the other filters in its layer.

    The score is ``|F_i| * sum over j != i of (1 - |cos(F_i, F_j)|)``, an ablation of ``WHC``.

    Example:
        >>> HC()
        HC()
    """

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        return _by_set(channels, lambda filters: _dissimilar(filters).sum(1))


class WHC(Criterion):
    """Score a filter as ``HC`` does, but let large filters weigh more in the comparison.

    The score is ``|F_i| * sum over j != i of |F_j| * (1 - |cos(F_i, F_j)|)``.

    Example:
        >>> import sparseconv as sc
        >>> model = nn.Sequential(nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Conv1d(3, 1, 1))
        >>> model[0].weight.data = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 1.0]]])
        >>> x = torch.zeros(1, 1, 9)
        >>> found = [sc.prune_filters(model, x, c, fraction=0).report for c in (HC(), WHC())]
        >>> [report.scores.tolist() for report in found]
        [[1.0, 2.0, 2.0], [1.0, 2.0, 3.0]]

    Source: Chen et al., "WHC: Weighted Hybrid Criterion for Filter Pruning on Convolutional Neural
    Networks", ICASSP 2023.
    """

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        return _by_set(channels, lambda filters: _dissimilar(filters) @ filters.norm(dim=1))


class Jacobian(Criterion):
    """Score a filter by the loss's sensitivity to it, including interactions between its weights.

    The parameters of a filter are its taps, its BatchNorm entry and the corresponding input channel
    of each following layer. For each layer and batch, the products of gradient and weight are
    summed, then squared. The score is the sum of these squares; scores are compared across layers.

    Args:
        data: ``(X, y)``, arrays of training series and class indices; or an iterable of batches
            ``(x, y)``, such as a ``DataLoader``.
        loss: a function of the model's output and the class indices that returns a scalar. The
            default expects log-probabilities; for logits, pass ``F.cross_entropy``.
        batches: the maximum number of batches. From arrays, evenly spaced series are taken, in
            batches of 64.

    Example:
        >>> Jacobian((torch.randn(8, 1, 30), torch.arange(8) % 2), loss=F.cross_entropy)
        Jacobian(batches=50)

    Source: Chen et al., "Optimal Brain Connection: Towards Efficient Structural Pruning", arXiv
    2508.05521.
    """

    everywhere = True

    def __init__(self, data: Any, *, loss: Loss = F.nll_loss, batches: int = 50) -> None:
        self.data, self.loss, self.batches = data, loss, count("batches", batches)

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        found, parameters = channels.zeros(), list(model.parameters())
        with evaluating(model), torch.enable_grad():
            for weight in parameters:
                weight.requires_grad_()  # frozen weights matter too
            batches = batches_of("Jacobian", model, self.data, self.batches * BATCH)
            for x, y in islice(batches, self.batches):
                out = model(x)
                of_classes = self.loss in (F.nll_loss, F.cross_entropy) and out.dim() == 2
                soft = self.loss is F.cross_entropy and y.is_floating_point()  # probabilities
                if of_classes and not (soft and y.shape == out.shape):
                    y = classes_of("Jacobian", y, out)
                loss = self.loss(out, y)
                grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
                products = {
                    id(weight): (grad * weight.detach()).double().cpu()
                    for weight, grad in zip(parameters, grads, strict=True)
                }
                for layer in channels.layers.values():
                    outputs, inputs = _felt(layer, products)
                    found += channels.sums(outputs, layer.outputs).square()
                    if layer.reads:
                        found += channels.sums(inputs, layer.inputs).square()
        return found


class DSP(Criterion):
    """Remove the filters whose output stays near zero on every training series.

    A filter's activation is the largest root mean square over time, across all series, of what the
    next layers read of it. The score is its ratio to the largest activation in the layer, or in a
    ``DSN``'s kernel group. Filters with a score of at most ``eps`` are removed, so no fraction is
    needed. To silence filters, train with ``InstanceSparsity``.

    Args:
        data: the training series: an array ``(n_cases, n_channels, length)``, a list of cases,
            ``(X, y)``, or an iterable of batches ``x`` or ``(x, y)``.
        eps: a share of the largest activation, in [0, 1). The paper's value is not public;
            ``report.curve`` shows how many filters other values would keep.

    Example:
        >>> import sparseconv as sc
        >>> model = nn.Sequential(nn.Conv1d(1, 4, 5), nn.ReLU(), nn.Conv1d(4, 2, 5))
        >>> _ = nn.init.ones_(model[0].weight), nn.init.zeros_(model[0].bias)
        >>> model[0].weight.data[2] = 0  # a silent filter
        >>> X = torch.randn(8, 1, 30)
        >>> sc.prune_filters(model, X[:1], DSP(X)).report.layers[0].kept
        (0, 1, 3)

    Source: Abdullayev et al., arXiv 2602.12744, 2026 (dynamic structured pruning).
    """

    def __init__(self, data: Any, *, eps: float = EPS) -> None:
        self.data, self.threshold = data, share("eps", eps, below_one=True)

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        # By layer that reads a unit: its mean square over time, the largest of all series.
        largest = {name: channels.zeros() for name, x in channels.layers.items() if x.reads}

        def see(name: str, x: Tensor) -> None:
            layer = channels.layers[name]
            x = x.double().cpu().movedim(layer.channel_dim, 1)
            if x.shape[1] != len(layer.inputs):
                return  # the layer says what it expected
            squares = x.square().reshape(*x.shape[:2], -1).mean(2)
            # A unit may have several channels here, as after Flatten.
            counts = channels.sums(torch.ones_like(squares[0]), layer.inputs).clamp_min(1)
            means = channels.sums(squares, layer.inputs) / counts
            largest[name] = torch.maximum(largest[name], means.amax(0))

        with watching(model, largest, see):
            for x, _ in batches_of("DSP", model, self.data, labels=False):
                model(x)
        scores = channels.zeros()
        for most in largest.values():
            for group in channels.sets:
                # Compare within a set only: inputs and other branches have other scales.
                own = most[group.units]
                if top := own.max():
                    shares = (own / top).sqrt()
                    scores[group.units] = torch.maximum(scores[group.units], shares)
        return scores

    def __repr__(self) -> str:
        return f"DSP(eps={self.threshold})"


class Evolutionary(Criterion):
    """Search, layer by layer, for the filters whose removal costs the least accuracy.

    For each layer or branch, NSGA-II searches for sets of filters that have few weights and cause
    few errors on training series. The smallest set whose error is at most ``tolerance`` above that
    of the whole model is kept. Encoding, operators, sizes and choice of a set are ours. It needs
    pymoo: ``pip install 'sparseconv[pruning]'``.

    Args:
        data: as in ``Jacobian``.
        tolerance: the share of errors that all layers together may add, in [0, 1].
        cases: the maximum number of series to evaluate; from arrays, evenly spaced ones are taken.
        population: the number of sets of filters in a generation, at least 2.

    Example:
        >>> import sparseconv as sc
        >>> X, y = torch.randn(8, 1, 30), torch.arange(8) % 2
        >>> criterion = Evolutionary((X, y), population=4, generations=2)
        >>> report = sc.prune_filters(sc.models.ResNet(1, 2, nf=4), X[:1], criterion).report
        >>> sorted(set(report.scores.tolist()))  # 1 if kept, otherwise 0
        [0.0, 1.0]

    Source: Li et al., "Evolutionary Multi-Objective One-Shot Filter Pruning for Designing
    Lightweight Convolutional Neural Network" and its successor SMOEA, arXiv 2211.01957; Deb et al.
    2002 (NSGA-II).
    """

    threshold, graded = 0.5, False

    def __init__(
        self,
        data: Any,
        *,
        tolerance: float = 0.02,
        cases: int = 128,
        population: int = 16,
        generations: int = 10,
        seed: int = 0,
    ) -> None:
        self.data, self.tolerance = data, share("tolerance", tolerance)
        self.cases = count("cases", cases)
        self.population = count("population", population, 2)
        self.generations = count("generations", generations)
        self.seed = count("seed", seed, 0)

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        """Return 1 for each unit that the search keeps, and 0 for the others."""
        kept = torch.ones(channels.n_units, dtype=torch.bool)
        batches, found = [], 0
        for batch in batches_of("Evolutionary", model, self.data, self.cases):
            batches.append(batch)
            if (found := found + len(batch[0])) >= self.cases:
                break
        x, y = (torch.cat(parts)[: self.cases] for parts in zip(*batches, strict=True))
        weights = [(weight, weight.detach().clone()) for weight in model.parameters()]

        def error(candidate: Tensor) -> float:
            mask(model, channels, candidate)
            wrong = float((model(x).argmax(1) != y).double().mean())
            for weight, content in weights:
                weight.copy_(content)
            return wrong

        with evaluating(model):
            y = classes_of("Evolutionary", y, model(x))  # wrong labels would count as errors
            limit = error(kept) + self.tolerance
            for group in channels.sets:
                kept[group.units] = self._search(channels, group, kept, error, limit)
        return kept.double()

    def _search(
        self, channels: Channels, group: UnitSet, kept: Tensor, error: Error, limit: float
    ) -> Tensor:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.operators.crossover.ux import UniformCrossover
        from pymoo.operators.mutation.bitflip import BitflipMutation
        from pymoo.optimize import minimize
        from pymoo.problems.functional import FunctionalProblem

        def candidate(chosen: npt.NDArray[Any]) -> Tensor:
            found = kept.clone()
            found[group.units] = torch.from_numpy(chosen)
            return found

        objectives = [lambda x: error(candidate(x)), lambda x: channels.weights(candidate(x))]
        at_least_one = [lambda chosen: 1 - int(chosen.sum())]
        n = len(group.units)
        problem = FunctionalProblem(n, objectives, constr_ieq=at_least_one, vtype=bool)
        rng = np.random.default_rng(self.seed)
        shares = np.linspace(0.1, 1, self.population)  # of the first sets; the last is whole
        first = rng.random((self.population, n)) < shares[:, None]
        first[~first.any(1), 0] = True
        search = NSGA2(
            self.population, sampling=first, crossover=UniformCrossover(),
            mutation=BitflipMutation(), eliminate_duplicates=True,
        )  # fmt: skip
        found = minimize(problem, search, ("n_gen", self.generations), seed=self.seed)
        good = found.F[:, 0] <= limit + 1e-9
        if not good.any():  # the last generation may lack the whole layer
            return kept[group.units]
        # Not the knee of the front, the usual choice: the errors of the layers would add up.
        best = np.where(good)[0][found.F[good, 1].argmin()]
        return torch.from_numpy(np.asarray(found.X[best], dtype=bool))


def _by_set(channels: Channels, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Score the filters ``(n, p)`` of each set; a row contains a unit's weights in all layers."""
    found = channels.zeros()
    for group in channels.sets:
        filters = []
        for name, rows in group.rows.items():
            module: Any = channels.layers[name].module
            sparse = isinstance(module, SparseConv1d)
            weight = module.dense_weight() if sparse else filters_first(module, module.weight)
            weight = weight.detach().double().cpu()
            filters.append(weight.flatten(1)[rows].flatten(1))
        found[group.units] = score(torch.cat(filters, dim=1))
    return found


def _dissimilar(filters: Tensor) -> Tensor:
    """Return ``norm_i * (1 - |cos|)`` as ``(n, n)``, with 0 on the diagonal."""
    norms: Tensor = filters.norm(dim=1, keepdim=True)
    unit = filters / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return norms * (1 - (unit @ unit.T).abs()).clamp_min(0).fill_diagonal_(0)


def _felt(layer: Layer, products: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum a layer's products by output channel and by input channel."""
    outputs, inputs = (torch.zeros(len(x)).double() for x in (layer.outputs, layer.inputs))
    for key in ("weight", "values", "bias"):
        if (parameter := layer.module._parameters.get(key)) is None:
            continue
        product = products[id(parameter)]
        if isinstance(layer.module, SparseConv1d) and parameter is layer.module.values:
            mask = layer.module.pattern.to_mask()
            product = torch.zeros(mask.shape).double().masked_scatter_(mask, product)
        if product.dim() == 1:  # a bias, or a parameter of BatchNorm
            outputs += product
        else:
            product = filters_first(layer.module, product)
            parts = product.reshape(layer.groups, -1, product.shape[1], product[0, 0].numel())
            outputs += parts.sum((2, 3)).flatten()
            inputs += parts.sum((1, 3)).flatten()
    return outputs, inputs
