"""Records and reports of ``profile``, ``convert``, ``prune_filters`` and ``factorize``.

Every report has a table of layers, lines with the totals, and a description of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from textwrap import fill
from typing import Any, ClassVar, NamedTuple

from sparseconv.core.files import write_whole
from sparseconv.measure.machine import environment_info
from sparseconv.measure.page import Section, page, write_html
from sparseconv.measure.table import Table, threads_text, with_thousands
from sparseconv.measure.timing import Estimate

INFERENCE, TRAINING = "inference", "training"
WIDTH = 100  # columns of what is printed
ACCURACY = (
    "these times say nothing about accuracy, which pruning in one step may reduce considerably: "
    "test the model, then fine-tune it or train it sparse from the start"
)


class Counts(NamedTuple):
    """A number before and after a change, or for the dense and the sparse layer.

    Example:
        >>> print(Counts(1168, 368))
        1 168 -> 368, 68.5% fewer
        >>> print(Counts(0, 0))
        0 -> 0
    """

    before: int
    after: int

    def __str__(self) -> str:
        text = f"{with_thousands(self.before)} -> {with_thousands(self.after)}"
        if self.before == 0:
            return text
        change = 1 - self.after / self.before
        return f"{text}, {change:.1%} fewer" if change >= 0 else f"{text}, {-change:.1%} more"


@dataclass(frozen=True)
class BeforeAfter:
    """Interleaved times of a pass before and after a change, or of a dense and a sparse layer.

    Attributes:
        before, after: median time in milliseconds, with its 95 % interval.
        speedup: ratio of the time before to the time after, pair by pair.
    """

    before: Estimate
    after: Estimate
    speedup: Estimate

    def __str__(self) -> str:
        return f"{self.before.median:.3f} -> {self.after.median:.3f} ms, speedup {self.speedup}"


class Verdict(StrEnum):
    """The conclusion about a layer; the value is its text in the table.

    Example:
        >>> Verdict.of(Estimate(1.4, 1.3, 1.6))  # the dense layer takes 1.4 times as long
        <Verdict.SPARSE: 'sparse is faster'>
    """

    UNMEASURED = ""
    SPARSE = "sparse is faster"
    DENSE = "dense is faster"
    UNCLEAR = "no clear difference"
    NAMED = "named in layers"
    NOT_NAMED = "not named in layers"
    UNPRUNED = "no weight is zero or masked"
    UNREACHED = "the input never reaches it"
    FEW = "few weights are active; not measured"
    MANY = "many weights are active; not measured"
    BFLOAT16 = "bfloat16 may be faster dense on a CPU; not measured"
    OBSTACLE = "cannot be replaced"

    @classmethod
    def of(cls, speedup: Estimate) -> Verdict:
        """Judge the ratio of dense to sparse time by its 95 % interval."""
        if speedup.low > 1:
            return cls.SPARSE
        return cls.DENSE if speedup.high < 1 else cls.UNCLEAR

    @property
    def converts(self) -> bool:
        """Return whether ``convert`` makes such a layer sparse."""
        return self in (Verdict.SPARSE, Verdict.NAMED, Verdict.FEW)


@dataclass(frozen=True)
class LayerTimes:
    """A layer's cost, dense (before) and sparse (after), and the conclusion.

    Attributes:
        name: the module's (first) name in the model.
        weight_shape: ``(C_out, C_in // groups, K)``.
        nnz, density: number of active weights, and their share of all weights; None where
            ``convert`` cannot replace the layer.
        sparse: whether ``convert`` made it sparse; None in a ``Profile``.
        verdict: print it, or compare it with a ``Verdict``.
        notes: details of the conversion.
        calls: number of calls in one pass of the model; in a ``Profile``, calls of one kind (see
            ``Profile.layers``). 0 if not measured. FLOPs and times are sums over these calls.
        input_shape: shape of the first input.
        dtype: dtype of the output.
        backend: backend of the sparse layer, ``"cpp"`` or ``"reference"``; empty if not measured.
        kernels: ``"blocks"`` or ``"single weights"``; empty if only the latter are possible.
        not_blocks: why kernels for blocks are not used.
        dgrad, wgrad: whether training computes the gradient of the input, and of the weights.
        times: times by pass; empty if not measured. ``"inference"`` is a forward pass without
            gradients; ``"training"`` adds the backward pass, if a gradient is needed.
        flops: dense and executed operations by pass; a multiply-add counts as two.
    """

    name: str
    weight_shape: tuple[int, ...]
    nnz: int | None
    density: float | None
    sparse: bool | None = None
    verdict: Verdict = Verdict.UNMEASURED
    notes: tuple[str, ...] = ()
    calls: int = 0
    input_shape: tuple[int, ...] = ()
    dtype: str = ""
    backend: str = ""
    kernels: str = ""
    not_blocks: str = ""
    dgrad: bool = False
    wgrad: bool = False
    times: Mapping[str, BeforeAfter] = field(default_factory=dict)
    flops: Mapping[str, Counts] = field(default_factory=dict)

    @property
    def speedup(self) -> Estimate | None:
        """Return the ratio of dense to sparse time, in training if measured; None if unknown."""
        decisive = self.times.get(TRAINING) or self.times.get(INFERENCE)
        return decisive.speedup if decisive else None

    @property
    def reason(self) -> str:
        """Return the verdict and notes as text."""
        return "; ".join((self.verdict, *self.notes))

    def rows(self) -> list[dict[str, str]]:
        """Return a row per pass, text by column; the last one has the decisive speedup."""
        out_channels, channels, taps = self.weight_shape
        groups = self.input_shape[-2] // channels if self.input_shape else 1
        plain = self.verdict in (Verdict.SPARSE, Verdict.DENSE)  # which says what became of it
        now = "" if plain or self.sparse is None else "sparse: " if self.sparse else "dense: "
        rows = [self._cells(which) for which in self.times] or [{}]
        rows[0] = {
            "layer": f"{self.name} ({self.calls}x)" if self.calls > 1 else self.name,
            "weight": f"{groups * channels} -> {out_channels} x {taps}"
            + (f", {groups} groups" if groups > 1 else ""),
            "input": " x ".join(map(str, self.input_shape)),
            "density": "" if self.density is None else f"{self.density:.2%}",
            "kernels": self.kernels,
        } | rows[0]
        rows[-1]["verdict"] = now + self.verdict
        return rows

    def _cells(self, which: str) -> dict[str, str]:
        found = self.times[which]
        gradients = [word for word in ("dgrad", "wgrad") if getattr(self, word)] or ["bias only"]
        return {
            "pass": f"{which}: {' + '.join(gradients)}" if which == TRAINING else which,
            "MFLOP": megaflops(self.flops[which].after),
            "dense MFLOP": megaflops(self.flops[which].before),
            "sparse ms": f"{found.after.median:.3f}",
            "dense ms": f"{found.before.median:.3f}",
            "speedup": f"{found.speedup.median:.2f}",
            "95 % interval": "{1:.2f} to {2:.2f}".format(*found.speedup),
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """Results to ``print``, ``save`` or show in a notebook.

    Attributes:
        layers: one record per layer.
        machine: processor, threads, instruction set and versions; empty if nothing was measured.
    """

    title: ClassVar[str]
    text_columns: ClassVar[Sequence[str]] = ("layer", "weight", "input", "kernels", "pass")
    short: ClassVar[Sequence[str]] = ("layer", "density", "speedup", "95 % interval", "verdict")
    layers: tuple[Any, ...]
    machine: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> Table:
        """Format the short table, one row per layer; omit empty columns."""
        rows = [rows[0] | rows[-1] for rows in (layer.rows() for layer in self.layers)]
        few = [{name: row[name] for name in self.short if name in row} for row in rows]
        return Table.of(few, self.text_columns[:1])

    def details(self) -> Table:
        """Format a table with all counts and times of each layer."""
        return Table.of((row for layer in self.layers for row in layer.rows()), self.text_columns)

    def summary(self) -> list[str]:
        """Return the totals, one line each."""
        raise NotImplementedError

    def __str__(self) -> str:
        lines = (
            fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
            for line in self.summary()
        )
        return "\n".join([self.table().markdown(WIDTH), "", *lines])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Return all counts and measurements, for ``json.dumps``."""
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.repr}
        found: dict[str, Any] = json.loads(json.dumps(shown, default=asdict))
        return found

    def _sections(self) -> list[Section]:
        return [
            Section("Layers", table=self.table()),
            Section("Together", "\n".join(self.summary())),
            Section("Details", table=self.details()),
        ]

    def _repr_html_(self) -> str:
        return page(self.title, self._sections())

    def save(self, path: str | Path) -> Path:
        """Write a page (``.html``) that needs no other file, or the measurements (``.json``).

        Raises:
            ValueError: the suffix is not supported.
        """
        path = Path(path)
        if path.suffix == ".html":
            return write_html(path, self.title, self._sections())
        if path.suffix != ".json":
            raise ValueError(f"expected a name that ends in .html or .json, but got {str(path)!r}")
        write_whole(path, json.dumps(self.to_dict(), indent=2) + "\n")
        return path


@dataclass(frozen=True, kw_only=True, repr=False)
class LayerReport(Report):
    """Report of layers that may have been measured, dense and sparse."""

    layers: tuple[LayerTimes, ...]
    machine: Mapping[str, str] = field(default_factory=environment_info)

    def conditions(self) -> list[str]:
        """Explain the layers' times, one line each."""
        lines = [
            "dense: F.conv1d of the same shape with all weights, including zeros",
            "speedup: dense time divided by sparse time, in training (forward and backward) where "
            "that was measured, otherwise in inference (a forward pass without gradients)",
            ACCURACY,
        ]
        speedups = [x.speedup for x in self.layers if x.speedup]
        if unclear := sum(x.low <= 1 <= x.high for x in speedups):
            lines.append(
                f"{unclear} of {len(speedups)} intervals contain 1: these verdicts may differ in "
                "another run; more rounds narrow the intervals"
            )
        if dense := dict.fromkeys(x.name for x in self.layers if x.backend == "reference"):
            lines.append(f"computed by the dense reference, not by the kernels: {', '.join(dense)}")
        for why in dict.fromkeys(x.not_blocks for x in self.layers if x.not_blocks):
            names = dict.fromkeys(x.name for x in self.layers if x.not_blocks == why)
            lines.append(
                f"computed with single weights, not with blocks: {', '.join(names)}; {why}"
            )
        return [*lines, where(self.machine)]


def where(machine: Mapping[str, str]) -> str:
    """Describe a measurement's machine in one line."""
    threads = threads_text(int(machine["threads"]))
    return (
        f"machine: {machine['cpu']}, {threads}, kernels {machine['cpp']}, torch {machine['torch']}"
    )


def megaflops(flops: int) -> str:
    """Format operations in millions, rounded to four significant digits or to an integer."""
    return f"{flops / 1e6:.4g}" if flops < 1e10 else f"{flops / 1e6:.0f}"
