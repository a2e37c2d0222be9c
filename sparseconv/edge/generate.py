"""The files of a program: what the templates say of a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2  # torch brings it

from sparseconv._version import __version__
from sparseconv.edge import quantize
from sparseconv.edge.layers import Layer, Network
from sparseconv.edge.quantize import IntegerNetwork, Rescale
from sparseconv.edge.storage import BYTES, CArray, narrowest, stored
from sparseconv.measure.table import Table, with_thousands

TILE = 8  # positions at a time, at most: their sums and the pointers fit a Cortex-M's registers
_SCORES = {
    "": "the model's outputs",
    "softmax": "probabilities",
    "log_softmax": "log-probabilities",
}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    keep_trailing_newline=True,
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """The C function of some layers: one for each distance of windows, and number of positions."""

    sparse: bool
    step: int
    tile: int
    wide: bool  # it writes int32

    @classmethod
    def of(cls, layer: Layer, wide: bool) -> Kernel:
        # An instruction or two for each product, and some for each weight.
        tiles = range(1, TILE + 1)
        tile = min(tiles, key=lambda n: -(-layer.positions // n) * (2 * n + 5))
        return cls(not layer.is_dense, layer.step, tile, wide)

    @property
    def name(self) -> str:
        kind = "sparse" if self.sparse else "dense"
        return f"{kind}_{self.step}_{self.tile}{'_wide' if self.wide else ''}"


class Arena:
    """Where each layer's input lies: alternately at the start and at the end of one memory."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        sizes = [layer.padded for layer in layers]
        self.samples = max(a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True))
        self._begins = [(self.samples - size) * (at % 2) for at, size in enumerate(sizes)]
        self._layers = layers

    def padded(self, at: int) -> str:
        """Return the input of a layer as a C expression, from its padding on."""
        return _plus(self._begins[at])

    def inside(self, at: int) -> str:
        """Return the same without the padding; after the last layer, the scores."""
        if at == len(self._layers):
            return "arena.scores"
        layer = self._layers[at]
        return _plus(self._begins[at] + layer.padding[0] * layer.channels)


def write_c(
    network: Network,
    integers: IntegerNetwork | None,
    name: str,
    cases: Sequence[dict[str, Any]],
    agreement: tuple[int, int] | None,
    classes: Sequence[str] | None,
) -> dict[str, str]:
    """Return the files of a program, by name.

    Args:
        integers: for int8.
        cases: series, scores and bounds of the self-test, as text, and labels.
        agreement: how many series were for calibration, and of how many int8 has PyTorch's class.
        classes: names for the comments.
    """
    layers, arena = network.layers, Arena(network.layers)
    parts = [_part(network, integers, arena, at) for at in range(len(layers))]
    numbers = [part["stored"] for part in parts]
    sample = "float" if integers is None else "int8_t"
    types = {
        "weight": sample, "gap": narrowest(x["gap"] for x in numbers if "gap" in x),
        "count": narrowest(x["count"] for x in numbers if "count" in x),
        "bias": "float" if integers is None else "int32_t", "multiplier": "int32_t",
    }  # fmt: skip
    for part in parts:
        part["arrays"] = [
            CArray.of(f"{field}_{part['at']}", type, part["stored"][field])
            for field, type in types.items()
            if field in part["stored"]
        ]
    channels, length = network.input_shape
    kind = "float32" if integers is None else "int8"
    # The scores have four bytes each, and begin at a multiple of four.
    bytes = -(-arena.samples * BYTES[sample] // 4) * 4 + 4 * network.classes
    modes = {x.padding_mode for x in layers if any(x.padding)}
    context: dict[str, Any] = {
        "name": name, "NAME": name.upper(), "version": __version__, "types": types,
        "title": f"A network in {kind} for {network.classes} classes of series of {channels} x "
        f"{length} samples", "channels": channels, "length": length, "classes": network.classes,
        "arena_bytes": bytes, "arena_samples": arena.samples, "layers": parts,
        "arrays": [array for part in parts for array in part["arrays"]],
        "kernels": list(dict.fromkeys(part["kernel"] for part in parts)),
        "sparse": any(part["kernel"].sparse for part in parts), "is_int8": integers is not None,
        "class_names": [_in_comment(name) for name in classes or ()],
        "copies": sorted(modes - {"zeros"}), "pads_zeros": "zeros" in modes,
        "copies_samples": channels == 1 and integers is None, "load": arena.inside(0),
        "ending": network.ending, "scores_are": _SCORES[network.ending],
        "uses_math": bool(network.ending) and integers is None, "cases": cases,
        "agreement": agreement, "cost": cost_table(parts).markdown(),
    }  # fmt: skip
    if integers is not None:
        context |= {
            "first": {
                "multiplier": int(integers.first.multiplier[0]), "scale": _scale(integers.first),
                "limit": quantize.INPUT_LIMIT, "power": f"0x1p{integers.exponent}f",
            },
            "point": f"0x1p{-integers.point}f", "roots": [f"{x}u" for x in quantize.HALVES],
            "log2_e": quantize.LOG2_E, "ln_2": quantize.LN_2,
        }  # fmt: skip
    files = {
        f"{name}.c": "network.c", f"{name}.h": "network.h", f"{name}_test.c": "network_test.c",
        "README.md": "README.md",
    }  # fmt: skip
    return {
        file: _tidy(_TEMPLATES.get_template(f"{template}.jinja").render(context))
        for file, template in files.items()
    }


def _part(
    network: Network, integers: IntegerNetwork | None, arena: Arena, at: int
) -> dict[str, Any]:
    """Return what the templates need of one layer."""
    layer = network.layers[at]
    own = None if integers is None else integers.layers[at]
    last = at + 1 == len(network.layers)
    (left, right), mode = layer.padding, layer.padding_mode
    pad = ""
    if left or right:
        sizes, kind = (left, layer.length, right), str(layer.channels)
        if mode == "zeros":
            sizes = (left * layer.channels, layer.length * layer.channels, right * layer.channels)
            kind = str(0 if own is None else own.zero)
        pad = f"pad_{mode}({arena.padded(at)}, {kind}, {', '.join(map(str, sizes))})"
    numbers = stored(layer, own)
    return {
        "at": at, "about": about(layer), "stored": numbers, "rows": layer.rows,
        "positions": layer.positions, "y_row": layer.positions if layer.rows_whole else 1,
        "y_position": 1 if layer.rows_whole else layer.rows,
        "columns": 0 if "gap" in numbers else len(layer.offsets),
        "kernel": Kernel.of(layer, wide=last and integers is not None), "pad": pad,
        "from": arena.padded(at), "to": arena.inside(at + 1), "relu": int(layer.relu),
        "scale": "" if own is None else _scale(own.rescale),
        "products": int(layer.active.sum()) * layer.positions,
    }  # fmt: skip


def about(layer: Layer) -> str:
    """Describe a layer in one line."""
    outputs = [layer.rows, layer.positions][:: -1 if layer.over_time else 1]
    share = layer.active.mean()
    kept = "" if layer.is_dense or layer.over_time else f", {share:.1%} of the weights"
    return (
        f"{layer.kind}{' and ReLU' if layer.relu else ''}: {layer.channels} x {layer.length} to "
        f"{outputs[0]} x {outputs[1]}{kept}"
    )


def cost_table(parts: Sequence[dict[str, Any]]) -> Table:
    """Tabulate what each layer stores and computes, and the sum."""
    rows = [
        (len(part["stored"]["weight"]), sum(x.bytes for x in part["arrays"]), part["products"])
        for part in parts
    ]
    names = [part["about"] for part in parts]
    total = tuple(map(sum, zip(*rows, strict=True)))
    lines = [
        (name, *map(with_thousands, row))
        for name, row in zip([*names, "all"], [*rows, total], strict=True)
    ]
    return Table(("layer", "weights", "flash, bytes", "multiply-adds a series"), lines)


def _scale(rescale: Rescale) -> str:
    """Shift, offset, back, low and high of the C program's ``scale_t``."""
    shift, low, high = rescale.shift, rescale.low, rescale.high
    offset, back = (1 << 62) + (1 << (shift - 1)), (1 << (62 - shift)) - rescale.zero
    return f"{shift}, INT64_C({offset}), INT64_C({back}), {low}, {high}"


def _in_comment(name: str) -> str:
    """Return the name without what would end a comment or a line."""
    printable = "".join(char if char.isprintable() else " " for char in name)
    return printable.replace("*/", "* /").replace("/*", "/ *").replace("|", "/")


def _plus(offset: int) -> str:
    return f"x + {offset}" if offset else "x"


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
