"""What ``convert`` did: per layer and for the whole model; as a table, or ready for json.

The table of layers is that of ``profiling.result``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from sparseconv.profiling.result import PASSES, Compared, Measured, layer_table


@dataclass(frozen=True, kw_only=True)
class ConversionReport(Measured):
    """What ``convert`` did; printing it shows a table.

    Attributes:
        layers: a ``LayerTimes`` for every ``nn.Conv1d``, in the model's order.
        times: ``"forward"`` (inference: without gradients) and, where it was measured, ``"step"``
            (training: forward and backward) of the whole model, as it came and converted; empty if
            nothing was measured or nothing converted.
        backward: whether training decided, or inference.
        threads, page_faults, machine: as in ``Measured``.

    Example:
        >>> import torch, sparseconv as sc
        >>> model, x = nn.Sequential(nn.Conv1d(4, 8, 9)), torch.randn(2, 4, 50)
        >>> report = sc.convert(model, layers=["0"], example_input=x, rounds=6).report
        >>> report.layers[0].verdict, sorted(report.times)
        ('sparse: named in layers', ['forward', 'step'])
    """

    times: Mapping[str, Compared]
    backward: bool

    @property
    def measured(self) -> bool:
        """Whether any layer was timed."""
        return any(layer.calls for layer in self.layers)

    def __str__(self) -> str:
        """A table with a line per layer and pass, and what came of it."""
        count = sum(layer.sparse for layer in self.layers)
        lines = [layer_table(self.layers).markdown(), ""]
        lines += [f"{count} of {len(self.layers)} layers are sparse now"]
        for name, found in self.times.items():
            lines.append(
                f"{PASSES[name]} of the whole model: {found.before_ms.median:.2f} ms as it came, "
                f"{found.after_ms.median:.2f} ms converted, ratio {found.ratio}"
            )
        if self.measured:
            decides = PASSES["step" if self.backward else "forward"]
            lines += [f"{decides} decides", *self.conditions()]
        else:
            lines += [
                "no layer was measured: with an example_input, times decide about every layer that "
                "has zeros or a mask, and with unpruned=True about the others too"
            ]
        return "\n".join(lines)


class Conversion(NamedTuple):
    """The converted model, and what was done to it."""

    model: nn.Module
    report: ConversionReport
