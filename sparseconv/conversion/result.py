"""What ``convert`` did: per layer and for the whole model; as a table, or ready for json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import nn

from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate


@dataclass(frozen=True)
class LayerConversion:
    """What became of one ``nn.Conv1d``.

    Attributes:
        name: of the layer in the model; its first one if it has several.
        weight_shape: ``(C_out, C_in // groups, K)``.
        density: share of weights that are active: neither masked nor, without a mask, zero. None
            where another obstacle came first.
        sparse: whether it is a ``SparseConv1d`` now.
        reason: why, in words.
        calls: of the layer in one pass of the model; 0 if nothing was measured.
        dense_ms, sparse_ms: median time of all these calls together, in milliseconds; None if not
            measured.
        ratio: dense / sparse with its 95 % interval, or None.
    """

    name: str
    weight_shape: tuple[int, ...]
    density: float | None
    sparse: bool
    reason: str
    calls: int = 0
    dense_ms: float | None = None
    sparse_ms: float | None = None
    ratio: Estimate | None = None

    @property
    def verdict(self) -> str:
        """``"sparse"`` or ``"dense"``, and the reason.

        Example:
            >>> LayerConversion("a", (4, 2, 3), 1.0, False, "no weight is zero or masked").verdict
            'dense: no weight is zero or masked'
        """
        return f"{'sparse' if self.sparse else 'dense'}: {self.reason}"


class ModelTimes(NamedTuple):
    """The whole model, in turns: as it came and converted; milliseconds, and before / after."""

    before_ms: Estimate
    after_ms: Estimate
    ratio: Estimate


@dataclass(frozen=True)
class ConversionReport:
    """What ``convert`` did; printing it shows a table.

    Attributes:
        layers: every ``nn.Conv1d``, in the model's order.
        times: ``"forward"`` and, where it was measured, ``"step"`` (forward and backward) of the
            whole model; empty if nothing was measured or nothing converted.
        backward: whether forward and backward decided, or forward alone.
        threads: of torch, during the measurement.
        machine: what a reader of a time must know.
    """

    layers: tuple[LayerConversion, ...]
    times: Mapping[str, ModelTimes]
    backward: bool
    threads: int
    machine: Mapping[str, str]

    @property
    def measured(self) -> bool:
        """Whether any layer was timed."""
        return any(layer.calls for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Everything, verdicts too, as ``json.dumps`` takes it."""
        found = asdict(self) | {"times": {name: t._asdict() for name, t in self.times.items()}}
        for layer, row in zip(self.layers, found["layers"], strict=True):
            row["verdict"] = layer.verdict
        return found

    def __str__(self) -> str:
        """A table with a line per layer, and what came of it."""
        lines = [Table(_HEADER, list(map(_line, self.layers)), text_columns=2).markdown()]
        count = sum(layer.sparse for layer in self.layers)
        lines += ["", f"{count} of {len(self.layers)} layers are sparse now"]
        for name, (before, after, ratio) in self.times.items():
            lines.append(
                f"{_SPELLED[name]} of the whole model: {before.median:.2f} ms as it came, "
                f"{after.median:.2f} ms converted, ratio {ratio}"
            )
        if self.measured:
            passes = "forward and backward" if self.backward else "forward"
            threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
            machine = f"{self.machine['cpu']}, {threads}, {self.machine['cpp']}"
            lines.append(f"measured: {passes}; {machine}, torch {self.machine['torch']}")
        else:
            lines.append("nothing was measured: give an example_input that reaches the layers")
        return "\n".join(lines)


class Conversion(NamedTuple):
    """The converted model, and what was done to it."""

    model: nn.Module
    report: ConversionReport


_HEADER = ("layer", "weight", "density", "dense ms", "sparse ms", "dense / sparse", "verdict")
_SPELLED = {"forward": "forward pass", "step": "forward and backward"}


def _line(layer: LayerConversion) -> tuple[str, ...]:
    def milliseconds(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    out_channels, channels, taps = layer.weight_shape
    return (
        layer.name if layer.calls < 2 else f"{layer.name} ({layer.calls}x)",
        f"{channels} → {out_channels} x {taps}",
        "" if layer.density is None else f"{layer.density:.2%}",
        milliseconds(layer.dense_ms),
        milliseconds(layer.sparse_ms),
        "" if layer.ratio is None else str(layer.ratio),
        layer.verdict,
    )
