"""What a plan may ask of a network that is made smaller: the ways, and the criteria by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
WITHOUT_RATIO = ("dsp", "evolutionary")  # these find out themselves how many filters go


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to make a trained network smaller, as a plan's ``pruning`` has it.

    Attributes:
        name: what tables call it.
        criterion, ratio, steps, equivalent: of ``prune_filters``.
        factorize, compression: the method and compression of ``factorize``, instead of pruning.
        retrain: begin anew with this shape, for all epochs.
        sparsity: of the convolutions that are left.

    Raises:
        ValueError: what would fail after the training, or be ignored.
    """

    name: str
    criterion: str | None = None
    ratio: float | None = None
    steps: int = 1
    equivalent: bool = False
    factorize: str | None = None
    compression: float | None = None
    retrain: bool = False
    sparsity: float | None = None

    def __post_init__(self) -> None:
        if self.criterion not in (None, *CRITERIA):
            raise ValueError(
                f"criterion must be one of {', '.join(CRITERIA)}, not {self.criterion!r}"
            )
        needs_ratio = self.criterion not in (None, *WITHOUT_RATIO)
        if (self.ratio is not None) != needs_ratio:
            raise ValueError(
                f"pruning's {self.name!r} {'needs a' if needs_ratio else 'has no use for its'} "
                "ratio, the share of the filters that go"
            )
        if (self.factorize is None) != (self.compression is None):
            raise ValueError(
                f"pruning's {self.name!r} needs both factorize and compression, or neither"
            )
