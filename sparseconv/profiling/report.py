"""What ``profile`` finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparseconv.measure.records import (
    INFERENCE,
    TRAINING,
    Counts,
    LayerTimes,
    Report,
    layer_conditions,
    megaflops,
)
from sparseconv.measure.timing import Estimate


@dataclass(frozen=True)
class ModelTime:
    """A pass of the whole model, and of its sparse layers.

    Attributes:
        ms: median time of the model in milliseconds, with its 95 % interval.
        flops: of all layers, dense and executed.
        dense_ms, sparse_ms: of all layers, called one by one, medians added up.
    """

    ms: Estimate
    flops: Counts
    dense_ms: float
    sparse_ms: float

    @classmethod
    def of(cls, which: str, ms: Estimate, layers: Iterable[LayerTimes]) -> ModelTime:
        """Add up layers; one without gradients costs a training step its forward pass."""
        found = [(layer, which if which in layer.times else INFERENCE) for layer in layers]
        return cls(
            ms,
            Counts(*map(sum, zip(*(layer.flops[name] for layer, name in found), strict=True))),
            sum(layer.times[name].before.median for layer, name in found),
            sum(layer.times[name].after.median for layer, name in found),
        )

    @property
    def share(self) -> float:
        """Sparse layers over the model; above 1 where the model spares what they cost alone."""
        return self.sparse_ms / self.ms.median


@dataclass(frozen=True, kw_only=True)
class Profile(Report):
    """The result of ``profile``; printing it shows a table.

    Attributes:
        layers: a ``LayerTimes`` for each layer, in the order in which the model first calls them,
            and for each kind of its calls: those on inputs of one shape, memory layout and dtype,
            for which the same gradients are computed.
        unreached: names of sparse layers that this input never came to.
        model: a ``ModelTime`` of ``"inference"`` and, if measured, of ``"training"``.
        machine: processor, threads, instruction set and versions.

    Example:
        >>> import torch, sparseconv as sc
        >>> found = sc.profile(sc.SparseConv1d(8, 16, 9), torch.randn(4, 8, 50), rounds=6)
        >>> layer = found.layers[0]
        >>> layer.nnz, layer.flops["inference"]  # dense and executed
        (230, Counts(before=387072, after=77280))
        >>> layer.ratio == layer.times["training"].ratio  # dense / sparse; training decides
        True
        >>> sorted(found.model), found.model["inference"].flops.after
        (['inference', 'training'], 77280)
    """

    title: ClassVar[str] = "Profile of sparse layers"
    layers: tuple[LayerTimes, ...]
    unreached: tuple[str, ...]
    model: Mapping[str, ModelTime]

    def summary(self) -> list[str]:
        """Return what it adds up to, a line each."""
        lines = []
        for which, found in self.model.items():
            dense, executed = map(megaflops, found.flops)
            lines.append(
                f"{which}: sparse layers {found.sparse_ms:.2f} ms, as dense ones "
                f"{found.dense_ms:.2f} ms; {executed} of {dense} MFLOP executed; alone they "
                f"take {found.share:.0%} of the model's {found.ms.median:.2f} ms"
            )
        if any(found.share > 1 for found in self.model.values()):
            lines.append(
                "above 100 % of the model: layers are called one by one, where they cost more than "
                "within it, with one backward pass for all, and some fused"
            )
        if TRAINING not in self.model and any(TRAINING in layer.times for layer in self.layers):
            lines.append(
                "training of the whole model was not measured: no output that can be seen here, a "
                "tensor or one inside lists, tuples and dicts, has a gradient"
            )
        if self.unreached:
            lines.append("never reached by this input: " + ", ".join(self.unreached))
        return [*lines, *layer_conditions(self.layers, self.machine)]
