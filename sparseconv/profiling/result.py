"""What a measurement of layers finds: records, and their table, of ``profile`` and ``convert``.

``prune_filters`` and ``convert`` compare a model before and after by the same record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparseconv.measure.table import Table, threads_text
from sparseconv.measure.timing import Estimate, Times, milliseconds, ratio

KEEP, DENSE, UNCLEAR = "keep sparse", "dense is faster here", "no clear difference"
PASSES = {"forward": "inference", "step": "training"}


def verdict_of(ratio: Estimate) -> str:
    """Judge dense / sparse by its 95 % interval."""
    if ratio.low > 1:
        return KEEP
    return DENSE if ratio.high < 1 else UNCLEAR


@dataclass(frozen=True)
class Compared:
    """A pass of a model or layer, timed before and after a change of it, in turns.

    Attributes:
        before_ms, after_ms: median time in milliseconds, with its 95 % interval.
        ratio: before / after, pair by pair.
    """

    before_ms: Estimate
    after_ms: Estimate
    ratio: Estimate

    @classmethod
    def of(cls, times: Times, which: str) -> Compared:
        """Compare ``"before ..."`` with ``"after ..."`` among times of a ``Stopwatch``.

        Args:
            times: seconds, round by round.
            which: the pass, ``"forward"`` or ``"step"``.
        """
        before, after = f"before {which}", f"after {which}"
        return cls(
            milliseconds(times[before]), milliseconds(times[after]), ratio(times, before, after)
        )


@dataclass(frozen=True)
class Measurement:
    """A layer in one pass of the model, sparse beside dense.

    Attributes:
        flops, dense_flops: operations executed and those of the dense layer; a multiply-add is
            two. The dense reference executes all.
        sparse_ms, dense_ms: median time in milliseconds, with its 95 % interval.
        ratio: dense / sparse, pair by pair.
        share_of_peak: executed FLOPs per second over the machine's FMA peak; None where no peak
            was measured, and of the dense reference.
        fft_ms: time of the layer by products of spectra, in inference with that of the weights
            kept, where a kernel has at least five active weights on average: there FFT may be the
            fastest way, which ``torch.fft`` has and the library not. None elsewhere, and of half
            types, under autocast and of empty inputs.

    Example: see ``Profile``.
    """

    flops: int
    dense_flops: int
    sparse_ms: Estimate
    dense_ms: Estimate
    ratio: Estimate
    share_of_peak: float | None
    fft_ms: Estimate | None = None

    @property
    def fft_is_fastest(self) -> bool:
        """Whether FFT was faster than both, beyond the intervals."""
        least = min(self.sparse_ms.low, self.dense_ms.low)
        return self.fft_ms is not None and self.fft_ms.high < least


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
        calls: how often one pass of the model calls it, in a ``Profile`` in this way (see its
            ``layers``); 0 if it was not measured. FLOPs and times are of all these calls together.
        input_shape, output_shape: of the first of them.
        dtype: of the output.
        backend: what computed the sparse layer, ``"cpp"`` or ``"reference"``; empty if it was not
            measured.
        dgrad, wgrad: whether a training step computes the gradient of the input, of the weights.
        forward: inference, that is a forward pass without gradients; None if not measured.
        step: training, forward and backward together; None if no gradient was asked for or is
            needed.

    Example: see ``Profile`` and ``verdict``.
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
    backend: str = ""
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
        if dense := dict.fromkeys(x.name for x in self.layers if x.backend == "reference"):
            lines.append(f"computed by the dense reference, not by the kernels: {', '.join(dense)}")
        by_fft = [
            f"{layer.name} ({PASSES[name]} {found.fft_ms.median:.3f} ms)"
            for layer in self.layers
            for name, found in layer.passes.items()
            if found.fft_ms is not None and found.fft_is_fastest
        ]
        if by_fft:
            lines.append(
                f"FFT is the fastest way to compute {', '.join(by_fft)}: products of spectra "
                "(torch.fft), which sparseconv does not have"
            )
        slowed = [f"{PASSES[k]} up to {v:.0%}" for k, v in self.page_faults.items() if v > 0.1]
        if slowed:
            lines.append(
                f"page faults take much of the time ({', '.join(slowed)}): freed memory returns to "
                "the system; sc.retain_freed_memory() at the start of the program keeps it"
            )
        facts = (
            self.machine["cpu"],
            threads_text(self.threads),
            "kernels " + self.machine["cpp"],
            f"torch {self.machine['torch']}",
        )
        return [*lines, "machine: " + ", ".join(facts)]


_HEADER = (
    "layer", "weight", "input", "density", "pass", "MFLOP", "dense MFLOP", "sparse ms", "dense ms",
    "fft ms", "dense / sparse", "of peak", "verdict",
)  # fmt: skip
_TEXT = _HEADER[:5]


def layer_table(layers: Sequence[LayerTimes]) -> Table:
    """A line per layer and pass; columns without any entry are left out."""
    rows = [row for layer in layers for row in _rows(layer)]
    header = [name for name in _HEADER if any(row.get(name) for row in rows)]
    cells = [[row.get(name, "") for name in header] for row in rows]
    return Table(header, cells, sum(name in _TEXT for name in header))


def _rows(layer: LayerTimes) -> list[dict[str, str]]:
    out_channels, channels, taps = layer.weight_shape
    groups = layer.input_shape[-2] // channels if layer.input_shape else 1
    gradients = [word for word in ("dgrad", "wgrad") if getattr(layer, word)] or ["bias only"]
    rows = [
        {
            "pass": PASSES[which] + (f": {' + '.join(gradients)}" if which == "step" else ""),
            "MFLOP": megaflops(m.flops),
            "dense MFLOP": megaflops(m.dense_flops),
            "sparse ms": f"{m.sparse_ms.median:.3f}",
            "dense ms": f"{m.dense_ms.median:.3f}",
            "fft ms": "" if m.fft_ms is None else f"{m.fft_ms.median:.3f}",
            "dense / sparse": str(m.ratio),
            "of peak": "" if m.share_of_peak is None else f"{m.share_of_peak:.0%}",
        }
        for which, m in layer.passes.items()
    ] or [{}]
    rows[0] |= {
        "layer": f"{layer.name} ({layer.calls}x)" if layer.calls > 1 else layer.name,
        "weight": f"{groups * channels} -> {out_channels} x {taps}"
        + (f", {groups} groups" if groups > 1 else ""),
        "input": " x ".join(map(str, layer.input_shape)),
        "density": "" if layer.density is None else f"{layer.density:.2%}",
    }
    rows[-1]["verdict"] = layer.verdict  # training, the last pass, decides where it was measured
    return rows


def megaflops(flops: int) -> str:
    """Millions of operations, to four digits or to the unit."""
    return f"{flops / 1e6:.4g}" if flops < 1e10 else f"{flops / 1e6:.0f}"


@dataclass(frozen=True)
class ModelTime:
    """A pass of the whole model: its time ``ms``, and beside it that of the sparse layers.

    ``share`` is the time of the layers called one by one, over that of the model, pair by pair. On
    their own they cost what the model spares: each has a backward pass of its own, and nothing is
    fused. Where that is much, beside short calls for one, the share comes above 1.
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
        layers: a ``LayerTimes`` for each layer, in the order in which the model first calls them,
            and for each kind of its calls: those on inputs of one shape, memory layout and dtype,
            for which the same gradients are computed.
        unreached: names of sparse layers that this input never came to.
        model: ``"forward"`` and, if measured, ``"step"`` of the whole model: its time ``ms``, and
            the ``share`` of the sparse layers.
        fma_gflops: the measured peak per dtype of the multiply-adds.
        threads, page_faults, machine: as in ``Measured``.

    Example:
        >>> import torch, sparseconv as sc
        >>> found = sc.profile(sc.SparseConv1d(8, 16, 9), torch.randn(4, 8, 50), rounds=6)
        >>> layer = found.layers[0]
        >>> layer.nnz, layer.forward.flops, layer.forward.dense_flops
        (230, 77280, 387072)
        >>> layer.ratio == layer.step.ratio  # dense / sparse; training decides, where measured
        True
        >>> sorted(found.totals), found.totals["forward"].flops
        (['forward', 'step'], 77280)
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
        lines = [layer_table(self.layers).markdown(), ""]
        for name, total in self.totals.items():
            (share, low, high), whole = self.model[name].share, self.model[name].ms.median
            lines.append(
                f"{PASSES[name]}: sparse layers {total.sparse_ms:.2f} ms, as dense ones "
                f"{total.dense_ms:.2f} ms; {megaflops(total.flops)} of "
                f"{megaflops(total.dense_flops)} MFLOP executed; in turns with the model they take "
                f"{share:.0%} [{low:.0%}, {high:.0%}] of its {whole:.2f} ms"
            )
        if any(time.share.median > 1 for time in self.model.values()):
            lines.append(
                "above 100 % of the model: layers are called one by one, where they cost more than "
                "within it, with one backward pass for all, and some fused"
            )
        if "step" not in self.totals and any(layer.step for layer in self.layers):
            lines.append(
                "training of the whole model was not measured: no output that can be seen here, a "
                "tensor or one inside lists, tuples and dicts, has a gradient, or not for "
                "torch.autograd.grad (checkpoints with use_reentrant=True)"
            )
        if self.unreached:
            lines.append("never reached by this input: " + ", ".join(self.unreached))
        peaks = [f"FMA peak: {p:.0f} GFLOP/s in {name}" for name, p in self.fma_gflops.items()]
        if any((m.share_of_peak or 0) > 1 for layer in self.layers for m in layer.passes.values()):
            peaks.append(
                "a share above 100 %: other programs were busy while the peak was measured; "
                "measure again"
            )
        return "\n".join([*lines, *self.conditions(), *peaks])
