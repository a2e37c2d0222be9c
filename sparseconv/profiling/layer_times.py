"""What a measurement of layers found: one record and one table for ``profile`` and ``convert``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate

KEEP, DENSE, UNCLEAR = "keep sparse", "dense is faster here", "no clear difference"
PASSES = {"forward": "inference", "step": "training"}


def verdict_of(ratio: Estimate) -> str:
    """Judge dense / sparse by its 95 % interval."""
    if ratio.low > 1:
        return KEEP
    return DENSE if ratio.high < 1 else UNCLEAR


@dataclass(frozen=True)
class Measurement:
    """A layer in one pass of the model, sparse beside dense.

    Attributes:
        flops, dense_flops: operations executed and those of the dense layer; a multiply-add is
            two.
        sparse_ms, dense_ms: median time in milliseconds, with its 95 % interval.
        ratio: dense / sparse, pair by pair.
        share_of_peak: executed FLOPs per second over the machine's FMA peak; None where no peak
            was measured.
    """

    flops: int
    dense_flops: int
    sparse_ms: Estimate
    dense_ms: Estimate
    ratio: Estimate
    share_of_peak: float | None


@dataclass(frozen=True)
class LayerTimes:
    """A layer, what it costs sparse and dense, and what follows from that.

    Attributes:
        name: of the module in the model; its first one if it has several.
        weight_shape: ``(C_out, C_in // groups, K)``.
        nnz, density: active weights, and their share of the kernel tensor. None where ``convert``
            cannot replace the layer.
        sparse: whether it is a ``SparseConv1d`` (after ``convert``: now).
        reason: why ``convert`` replaced it or did not; empty in a ``Profile``.
        calls: how often one pass of the model calls it, in a ``Profile`` on inputs of this shape;
            0 if it was not measured. FLOPs and times are of all these calls together.
        input_shape, output_shape: of the first of them.
        dtype: of the output.
        dgrad, wgrad: whether a training step computes the gradient of the input, of the weights.
        forward: inference, that is a forward pass without gradients; None if not measured.
        step: training, forward and backward together; None if no gradient was asked for or is
            needed.
    """

    name: str
    weight_shape: tuple[int, ...]
    nnz: int | None
    density: float | None
    sparse: bool = True
    reason: str = ""
    calls: int = 0
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    dtype: str = ""
    dgrad: bool = False
    wgrad: bool = False
    forward: Measurement | None = None
    step: Measurement | None = None

    @property
    def passes(self) -> dict[str, Measurement]:
        """What was measured, by name."""
        return {name: found for name in PASSES if (found := getattr(self, name)) is not None}

    @property
    def decisive(self) -> Measurement | None:
        """The measurement that decides: of training if there is one, else of inference."""
        return self.step or self.forward

    @property
    def ratio(self) -> Estimate | None:
        """Dense / sparse in the decisive pass; None if not measured."""
        return self.decisive.ratio if self.decisive else None

    @property
    def sparse_ms(self) -> float | None:
        """Median time in the decisive pass; None if not measured."""
        return self.decisive.sparse_ms.median if self.decisive else None

    @property
    def dense_ms(self) -> float | None:
        """Median time of the dense layer in the decisive pass; None if not measured."""
        return self.decisive.dense_ms.median if self.decisive else None

    @property
    def verdict(self) -> str:
        """What follows, in words.

        In a ``Profile`` ``"keep sparse"``, ``"dense is faster here"``, or ``"no clear
        difference"`` if the interval of the ratio holds 1; after ``convert`` ``"sparse"`` or
        ``"dense"``, and the reason.

        Example:
            >>> once = Measurement(10, 100, *[Estimate(1.0, 0.9, 1.1)] * 3, None)
            >>> LayerTimes("a", (4, 2, 3), 24, 1.0, forward=once).verdict
            'no clear difference'
            >>> LayerTimes("a", (4, 2, 3), 24, 1.0, False, "no weight is zero or masked").verdict
            'dense: no weight is zero or masked'
        """
        if self.reason:
            return f"{'sparse' if self.sparse else 'dense'}: {self.reason}"
        return verdict_of(self.ratio) if self.ratio else ""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Layers in the order of the model, and what a reader of their times must know.

    Attributes:
        layers: a ``LayerTimes`` each.
        threads: of torch, during the measurement.
        page_faults: the share of the time that page faults took, in the candidate that they
            slowed down most, of inference (``"forward"``) and of training (``"step"``).
        machine: processor, instruction set and versions.
    """

    layers: tuple[LayerTimes, ...]
    threads: int
    page_faults: Mapping[str, float]
    machine: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Everything, verdicts too, as ``json.dumps`` accepts it."""
        found = asdict(self)
        for layer, row in zip(self.layers, found["layers"], strict=True):
            row["verdict"] = layer.verdict
        return found

    def conditions(self) -> list[str]:
        """What the times mean, a line each."""
        lines = [
            "dense: F.conv1d of the same shape with all weights, zeros too",
            "inference: a forward pass without gradients; training: forward and backward",
        ]
        slowed = [f"{PASSES[k]} up to {v:.0%}" for k, v in self.page_faults.items() if v > 0.1]
        if slowed:
            lines.append(
                f"page faults take much of the time ({', '.join(slowed)}): freed memory returns to "
                "the system; sc.retain_freed_memory() at the start of the program keeps it"
            )
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        facts = [
            self.machine["cpu"],
            threads,
            self.machine["cpp"],
            f"torch {self.machine['torch']}",
        ]
        return [*lines, "machine: " + ", ".join(facts)]


_HEADER = (
    "layer", "weight", "input", "density", "pass", "MFLOP", "dense MFLOP", "sparse ms", "dense ms",
    "dense / sparse", "of peak", "verdict",
)  # fmt: skip
_TEXT = 5


def layer_table(layers: Sequence[LayerTimes]) -> str:
    """A line per layer and pass; columns without any entry are left out."""
    rows = [line for layer in layers for line in _lines(layer)]
    kept = [i for i in range(len(_HEADER)) if any(row[i] for row in rows)]
    cells = [[row[i] for i in kept] for row in (_HEADER, *rows)]
    return Table(cells[0], cells[1:], sum(i < _TEXT for i in kept)).markdown()


def _lines(layer: LayerTimes) -> list[tuple[str, ...]]:
    out_channels, channels, taps = layer.weight_shape
    about = (
        f"{layer.name} ({layer.calls}x)" if layer.calls > 1 else layer.name,
        f"{channels} → {out_channels} x {taps}",
        " x ".join(map(str, layer.input_shape)),
        "" if layer.density is None else f"{layer.density:.2%}",
    )
    gradients = [word for word in ("dgrad", "wgrad") if getattr(layer, word)] or ["bias only"]
    lines: list[tuple[str, ...]] = []
    for which, m in layer.passes.items():
        first = not lines
        lines.append(
            (
                *(about if first else ("",) * len(about)),
                PASSES[which] + (f": {' + '.join(gradients)}" if which == "step" else ""),
                megaflops(m.flops),
                megaflops(m.dense_flops),
                f"{m.sparse_ms.median:.3f}",
                f"{m.dense_ms.median:.3f}",
                str(m.ratio),
                "" if m.share_of_peak is None else f"{m.share_of_peak:.0%}",
                layer.verdict if first else "",
            )
        )
    missing = len(_HEADER) - len(about) - 1
    return lines or [(*about, *("",) * missing, layer.verdict)]


def megaflops(flops: int) -> str:
    """Millions of operations, to four digits or to the unit."""
    return f"{flops / 1e6:.4g}" if flops < 1e10 else f"{flops / 1e6:.0f}"
