"""What a plan may ask of a network that is made smaller: its keys, and the criteria by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
KEYS = (
    "name", "criterion", "ratio", "steps", "equivalent", "factorize", "compression", "retrain",
    "sparsity",
)  # fmt: skip


def check_variants(variants: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a plan's ``pruning`` that would fail after the training, or be ignored.

    Raises:
        ValueError: the message names the variant.
    """
    names = set()
    for variant in variants:
        if unknown := [key for key in variant if key not in KEYS]:
            raise ValueError(f"unknown key pruning.{unknown[0]}; known are {', '.join(KEYS)}")
        name, criterion = variant["name"], variant.get("criterion")
        if name in names:
            raise ValueError(f"pruning names {name!r} twice")
        names.add(name)
        if criterion is not None and criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, not {criterion!r}")
        needs_ratio = criterion is not None and criterion not in WITHOUT_RATIO
        if ("ratio" in variant) != needs_ratio:
            raise ValueError(
                f"pruning's {name!r} {'needs a' if needs_ratio else 'has no use for its'} ratio, "
                "the share of the filters that go"
            )
        if ("factorize" in variant) != ("compression" in variant):
            raise ValueError(f"pruning's {name!r} needs both factorize and compression, or neither")
