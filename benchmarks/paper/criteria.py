"""The criteria that choose filters, by the names that a plan gives them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sparseconv.pruning import DSP, HC, WHC, Criterion, Evolutionary, Jacobian, Magnitude

Data = tuple[Tensor, Tensor]
CRITERIA: dict[str, Callable[[Data, int], Criterion]] = {  # of training data and a seed
    "whc": lambda data, seed: WHC(),
    "hc": lambda data, seed: HC(),
    "l2": lambda data, seed: Magnitude(),
    "jacobian": lambda data, seed: Jacobian(data),
    "dsp": lambda data, seed: DSP(data),
    "evolutionary": lambda data, seed: Evolutionary(
        data, population=8, generations=6, cases=64, seed=seed
    ),
}
