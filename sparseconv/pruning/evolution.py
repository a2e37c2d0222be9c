"""Choose filters by an evolutionary search over accuracy and size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sparseconv.core.checks import count, share
from sparseconv.pruning.channels import Channels, UnitSet
from sparseconv.pruning.criteria import Criterion
from sparseconv.pruning.surgery import mask
from sparseconv.running import batches_of, classes_of, evaluating


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
        self,
        channels: Channels,
        group: UnitSet,
        kept: Tensor,
        error: Callable[[Tensor], float],
        limit: float,
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
