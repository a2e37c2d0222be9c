"""What ``profile`` found: per layer, per pass and in total; as a table, or ready for json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate

KEEP, DENSE, UNCLEAR = "keep sparse", "dense is faster here", "no clear difference"


def verdict_of(ratio: Estimate) -> str:
    """Judge dense / sparse by its 95 % interval."""
    if ratio.low > 1:
        return KEEP
    return DENSE if ratio.high < 1 else UNCLEAR


@dataclass(frozen=True)
class Measurement:
    """One pass of a layer, forward or backward, for one call.

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
class LayerProfile:
    """A sparse layer on one shape of input.

    Attributes:
        name: of the module in the model; its first one if it has several.
        calls: how often one pass of the model calls it on inputs like this; times are per call.
        input_shape, output_shape: as the layer saw them.
        weight_shape: ``(C_out, C_in // groups, K)``.
        dtype: of the output.
        nnz, density: active weights, and their share of the kernel tensor.
        dgrad, wgrad: whether the backward pass computes the gradient of the input, of the values.
        forward: always measured.
        backward: None if no gradient was asked for or is needed.
        ratio: dense / sparse of the passes together.
    """

    name: str
    calls: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    weight_shape: tuple[int, int, int]
    dtype: str
    nnz: int
    density: float
    dgrad: bool
    wgrad: bool
    forward: Measurement
    backward: Measurement | None
    ratio: Estimate

    @property
    def verdict(self) -> str:
        """``"keep sparse"``, ``"dense is faster here"``, or neither if the interval holds 1.

        Example:
            >>> once = Measurement(10, 100, *[Estimate(1.0, 0.9, 1.1)] * 3, None)
            >>> LayerProfile("a", 1, (1, 1, 9), (1, 1, 9), (1, 1, 1), "float32", 1, 1.0, False,
            ...              False, once, None, once.ratio).verdict
            'no clear difference'
        """
        return verdict_of(self.ratio)

    @property
    def passes(self) -> dict[str, Measurement]:
        """What was measured, by name."""
        passes = {"forward": self.forward}
        return passes if self.backward is None else passes | {"backward": self.backward}


@dataclass(frozen=True)
class ModelTime:
    """The whole model: a forward pass, and a step (forward and backward; None if not timed).

    Attributes:
        forward_ms, step_ms: median time in milliseconds, with its 95 % interval.
        forward_share, step_share: the time of the sparse layers on their own over the model's,
            pair by pair.
    """

    forward_ms: Estimate
    forward_share: Estimate
    step_ms: Estimate | None
    step_share: Estimate | None


@dataclass(frozen=True)
class Totals:
    """All calls of all layers together; medians added up.

    Attributes:
        flops, dense_flops: operations executed and dense.
        sparse_ms, dense_ms: time of the sparse layers, and if they were dense.
    """

    flops: int
    dense_flops: int
    sparse_ms: float
    dense_ms: float


@dataclass(frozen=True)
class Profile:
    """The result of ``profile``; printing it shows a table.

    Attributes:
        layers: in the order in which the model calls them.
        unreached: names of sparse layers that this input never came to.
        model: the time of the whole model.
        threads: of torch, during the measurement.
        fma_gflops: the measured peak per dtype of the multiply-adds.
        machine: what a reader of a time must know.
    """

    layers: tuple[LayerProfile, ...]
    unreached: tuple[str, ...]
    model: ModelTime
    threads: int
    fma_gflops: Mapping[str, float]
    machine: Mapping[str, str]

    @property
    def totals(self) -> dict[str, Totals]:
        """``"forward"`` and, if measured, ``"step"``: forward and backward together."""
        found = {"forward": self._total("forward")}
        if any(layer.backward for layer in self.layers):
            found["step"] = self._total("forward", "backward")
        return found

    def _total(self, *passes: str) -> Totals:
        def add(value: Callable[[Measurement], float]) -> float:
            return sum(
                layer.calls * value(layer.passes[which])
                for layer in self.layers
                for which in passes
                if which in layer.passes
            )

        return Totals(
            flops=int(add(lambda m: m.flops)),
            dense_flops=int(add(lambda m: m.dense_flops)),
            sparse_ms=add(lambda m: m.sparse_ms.median),
            dense_ms=add(lambda m: m.dense_ms.median),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, verdicts and totals too, as ``json.dumps`` takes it."""
        found = asdict(self)
        for layer, row in zip(self.layers, found["layers"], strict=True):
            row["verdict"] = layer.verdict
        return found | {"totals": {name: asdict(total) for name, total in self.totals.items()}}

    def __str__(self) -> str:
        """A table with a line per layer and pass, and what it adds up to."""
        rows = [
            line for layer in self.layers for line in _lines(layer, many=self._called_repeatedly())
        ]
        lines = [Table(_HEADER, rows, text_columns=5).markdown(), ""]
        model = self.model
        for name, time, share in (
            ("forward", model.forward_ms, model.forward_share),
            ("step", model.step_ms, model.step_share),
        ):
            if name in self.totals:
                lines.append(_sum_up(name, self.totals[name], time, share))
        if self.unreached:
            lines.append("never reached by this input: " + ", ".join(self.unreached))
        facts = [self.machine["cpu"], f"{self.threads} thread{'s' if self.threads > 1 else ''}"]
        facts += [self.machine["cpp"], f"torch {self.machine['torch']}"]
        facts += [f"FMA peak {p:.0f} GFLOP/s in {name}" for name, p in self.fma_gflops.items()]
        return "\n".join([*lines, "machine: " + ", ".join(facts)])

    def _called_repeatedly(self) -> bool:
        return any(layer.calls > 1 for layer in self.layers)


_HEADER = (
    "layer", "weight", "input", "density", "pass", "MFLOP", "dense", "sparse ms", "dense ms",
    "dense / sparse", "of peak", "verdict",
)  # fmt: skip
_SPELLED = {"forward": "forward pass", "step": "forward and backward"}


def _lines(layer: LayerProfile, *, many: bool) -> list[tuple[str, ...]]:
    out_channels, channels, taps = layer.weight_shape
    name = f"{layer.name} ({layer.calls}x)" if many else layer.name
    shape = " x ".join(map(str, layer.input_shape))
    about = (name, f"{channels} → {out_channels} x {taps}", shape, f"{layer.density:.2%}")
    gradients = [word for word in ("dgrad", "wgrad") if getattr(layer, word)]
    lines = []
    for which, m in layer.passes.items():
        first = which == "forward"
        lines.append(
            (
                *(about if first else ("",) * len(about)),
                which if first else " + ".join(gradients) or "bias only",
                _mega(m.flops),
                _mega(m.dense_flops),
                f"{m.sparse_ms.median:.3f}",
                f"{m.dense_ms.median:.3f}",
                str(m.ratio),
                "" if m.share_of_peak is None else f"{m.share_of_peak:.0%}",
                f"{layer.verdict}: {layer.ratio}" if first else "",
            )
        )
    return lines


def _sum_up(name: str, total: Totals, time: Estimate | None, share: Estimate | None) -> str:
    text = (
        f"{_SPELLED[name]}: sparse layers {total.sparse_ms:.2f} ms, as dense ones "
        f"{total.dense_ms:.2f} ms; {_mega(total.flops)} of {_mega(total.dense_flops)} MFLOP "
        "executed"
    )
    if time is not None and share is not None:
        low, high = share.low, share.high
        text += f"; {share.median:.0%} [{low:.0%}, {high:.0%}] of the model's {time.median:.2f} ms"
    return text


def _mega(flops: int) -> str:
    return f"{flops / 1e6:.4g}" if flops < 1e10 else f"{flops / 1e6:.0f}"
