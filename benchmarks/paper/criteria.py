"""The criteria that choose filters, by the names that a plan gives them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparseconv.pruning import DSP, HC, WHC, Criterion, Evolutionary, Jacobian, Magnitude

Data = tuple[Tensor, Tensor]
NO_DATA: Data = (torch.zeros(2, 1, 8), torch.tensor([0, 1]))  # for what does not look at it
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
# These find out themselves how many filters go; the others need a ratio.
WITHOUT_RATIO = tuple(
    name for name, make in CRITERIA.items() if make(NO_DATA, 0).threshold is not None
)
