"""What ``profile`` found: per layer, per pass and in total; as a table, or ready for json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparseconv.measure.timing import Estimate
from sparseconv.profiling.layer_times import PASSES, Measured, layer_table, megaflops


@dataclass(frozen=True)
class ModelTime:
    """A pass of the whole model: its time, and the share of it that the sparse layers take.

    The share compares the layers on their own with the model, pair by pair.
    """

    ms: Estimate
    share: Estimate


@dataclass(frozen=True)
class Totals:
    """All calls of all layers in one pass; medians added up."""

    flops: int
    dense_flops: int
    sparse_ms: float
    dense_ms: float


@dataclass(frozen=True, kw_only=True)
class Profile(Measured):
    """The result of ``profile``; printing it shows a table.

    Attributes:
        layers: a ``LayerTimes`` for each layer and shape of input, in the order in which the model
            calls them.
        unreached: names of sparse layers that this input never came to.
        model: ``"forward"`` and, if measured, ``"step"`` of the whole model: its time ``ms``, and
            the ``share`` of the sparse layers.
        fma_gflops: the measured peak per dtype of the multiply-adds.
        threads, page_faults, machine: as in ``Measured``.
    """

    unreached: tuple[str, ...]
    model: Mapping[str, ModelTime]
    fma_gflops: Mapping[str, float]

    @property
    def totals(self) -> dict[str, Totals]:
        """``"forward"`` and, if measured, ``"step"``: the sums over the layers."""
        totals = {}
        for name in self.model:
            # A layer without gradients costs a training step its forward pass.
            passes = [layer.passes.get(name, layer.forward) for layer in self.layers]
            found = [m for m in passes if m is not None]
            totals[name] = Totals(
                sum(m.flops for m in found),
                sum(m.dense_flops for m in found),
                sum(m.sparse_ms.median for m in found),
                sum(m.dense_ms.median for m in found),
            )
        return totals

    def to_dict(self) -> dict[str, Any]:
        """Everything, verdicts and totals too, as ``json.dumps`` accepts it."""
        totals = {name: asdict(total) for name, total in self.totals.items()}
        return super().to_dict() | {"totals": totals}

    def __str__(self) -> str:
        """A table with a line per layer and pass, and what it adds up to."""
        lines = [layer_table(self.layers), ""]
        for name, total in self.totals.items():
            (share, low, high), whole = self.model[name].share, self.model[name].ms.median
            lines.append(
                f"{PASSES[name]}: sparse layers {total.sparse_ms:.2f} ms, as dense ones "
                f"{total.dense_ms:.2f} ms; {megaflops(total.flops)} of "
                f"{megaflops(total.dense_flops)} MFLOP executed; {share:.0%} [{low:.0%}, "
                f"{high:.0%}] of the model's {whole:.2f} ms"
            )
        if self.unreached:
            lines.append("never reached by this input: " + ", ".join(self.unreached))
        peaks = [f"FMA peak: {p:.0f} GFLOP/s in {name}" for name, p in self.fma_gflops.items()]
        return "\n".join([*lines, *self.conditions(), *peaks])
