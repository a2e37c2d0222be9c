"""Fill the templates of the C files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2  # torch brings it
import numpy as np

from sparseconv._version import __version__
from sparseconv.edge import quantize
from sparseconv.edge.layers import Array, Layer, Network, Step
from sparseconv.edge.quantize import IntegerNetwork, IntegerPointwise, Rescale
from sparseconv.edge.storage import c_numbers, c_type, constants, placed
from sparseconv.measure.table import Table, with_thousands

TILE = 8  # positions at a time, at most: their sums and the pointers fit a Cortex-M's registers
FILES = {
    "{}.c": "network.c", "{}.h": "network.h", "{}_test.c": "network_test.c",
    "README.md": "README.md",
}  # fmt: skip


class Kernel(NamedTuple):
    """The C function shared by layers with the same window step and tile of positions."""

    kind: str  # "dense", "sparse", "runs", "largest"
    step: int
    tile: int
    wide: bool  # it writes int32

    @classmethod
    def of(cls, layer: Layer, stored: Mapping[str, Array], wide: bool) -> Kernel:
        kind = "runs" if "run" in stored else "sparse" if "gap" in stored else "dense"
        # An instruction or two for each product, and some for each weight.
        tiles = range(1, TILE + 1)
        tile = min(tiles, key=lambda n: -(-layer.positions // n) * (2 * n + 5))
        return cls("largest" if layer.largest else kind, layer.step, tile, wide)

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.step}_{self.tile}{'_wide' if self.wide else ''}"


class Part(NamedTuple):
    """One step of the program.

    Attributes:
        kernel: the C function, if the step is a layer.
        constants: the constants, by name.
        inputs, output: offsets of these tensors in the arena, in samples, without padding.
    """

    step: Step
    kernel: Kernel | None
    constants: dict[str, Array]
    inputs: list[int]
    output: int

    @property
    def padded(self) -> int:
        """Return the offset of the padded input."""
        left: int = getattr(self.step, "padding", (0, 0))[0]
        return self.inputs[0] - left * self.step.channels

    @property
    def function(self) -> tuple[int, str, bool]:
        """Return a pointwise step's number of inputs, expression, and whether a ReLU follows."""
        step: Any = self.step
        if not isinstance(step, IntegerPointwise):
            return len(self.inputs), step.expression, step.relu
        pair = "product" if "*" in step.expression else "weighted sum"
        return len(self.inputs), pair if len(self.inputs) == 2 else "table[p + 128]", False

    @property
    def about(self) -> str:
        step = self.step
        outputs = [step.rows, step.positions]
        kept, kind = "", step.kind
        if isinstance(step, Layer):
            outputs = outputs[:: -1 if step.over_time else 1]
            if not (step.is_dense or step.over_time or step.largest):
                kept = f", {step.active.sum()} active weights"
        relu = " and ReLU" if step.relu else ""
        sizes = f"{step.channels} x {step.length} to {outputs[0]} x {outputs[1]}"
        return f"{kind}{relu}: {sizes}{kept}"

    @property
    def cost(self) -> tuple[int, int, int, int]:
        """Count weights, bytes of indices and of all constants, and multiply-adds per series."""
        weights = 0
        if isinstance(self.step, Layer) and not self.step.largest:
            weights = int(self.step.active.sum())
        sizes = {field: array.nbytes for field, array in self.constants.items()}
        places = sum(sizes.get(field, 0) for field in ("gap", "count", "run"))
        return weights, places, sum(sizes.values()), weights * self.step.positions


def write_c(
    network: Network,
    name: str,
    cases: Sequence[tuple[Array, Array, Array, int]],
    agreement: tuple[int, int] | None,
    classes: Sequence[str],
) -> dict[str, str]:
    """Return the files of a program, by name.

    Args:
        network: the steps; an ``IntegerNetwork`` for int8.
        cases: the self-test's series, scores, tolerances and labels.
        agreement: the number of calibration series, and the number of these for which int8
            predicts PyTorch's class.
        classes: class names for the comments.
    """
    parts, begin, samples = _parts(network)
    types = {
        field: c_type(array) for part in parts for field, array in part.constants.items()
    }  # those of gaps, counts and runs are the same in all layers
    channels, length = network.input_shape
    is_int8 = isinstance(network, IntegerNetwork)
    kind, least = "float32", f"{network.threshold}f"
    if isinstance(network, IntegerNetwork):
        kind, least = "int8", str(min(int(network.threshold * 2**network.point), quantize.LIMIT))
    # The scores have four bytes each, and begin at a multiple of four.
    arena = -(-samples * (1 if is_int8 else 4) // 4) * 4 + 4 * network.classes
    modes = {layer.padding_mode for layer in network.layers if any(layer.padding)}
    functions = list(dict.fromkeys(part.function for part in parts if not part.kernel))
    uses_math = bool(network.ending) or any("f(" in expression for _, expression, _ in functions)
    context: dict[str, Any] = {
        "name": name, "NAME": name.upper(), "version": __version__, "types": types,
        "title": f"{kind} network for {max(2, network.classes)} classes of series with "
        f"{channels} x {length} samples", "channels": channels, "length": length,
        "network": network, "classes": network.classes, "arena_bytes": arena,
        "arena_samples": samples, "parts": parts,
        "kernels": list(dict.fromkeys(part.kernel for part in parts if part.kernel)),
        "functions": functions, "is_int8": is_int8,
        "class_names": [_in_comment(name) for name in classes], "copies": sorted(modes - {"zeros"}),
        "pads_zeros": "zeros" in modes, "ending": network.ending, "quantize": quantize,
        "uses_math": uses_math and not is_int8, "cases": cases,
        "agreement": agreement, "cost": cost_table(parts).markdown(),
        "begin": begin, "threshold": least,
        "chosen": f"the index of the largest score, 0 to {network.classes - 1}"
        if network.classes > 1 else f"1 if the score is above {network.threshold:g}, otherwise 0",
    }  # fmt: skip
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {"numbers": c_numbers, "c_type": c_type, "scale": _scale}
    return {
        file.format(name): _tidy(templates.get_template(f"{template}.jinja").render(context))
        for file, template in FILES.items()
    }


def _parts(network: Network) -> tuple[list[Part], int, int]:
    """Lay out the arena; return the parts, the series' offset and the number of samples."""
    stored = [constants(step) for step in network.steps]
    for field in ("gap", "count", "run"):
        having = [each for each in stored if field in each]
        kind = np.min_scalar_type(max((each[field].max() for each in having), default=0))
        for each in having:
            each[field] = each[field].astype(kind)
    places, samples = placed(network)
    parts = []
    for step, numbers in zip(network.steps, stored, strict=True):
        wide = isinstance(network, IntegerNetwork) and step is network.steps[-1]
        kernel = Kernel.of(step, numbers, wide) if isinstance(step, Layer) else None
        inputs = [places[number] for number in step.inputs]
        parts.append(Part(step, kernel, numbers, inputs, places.get(step.output, 0) + step.first))
    return parts, places[0], samples


def cost_table(parts: Sequence[Part]) -> Table:
    """Tabulate the weights, bytes and multiply-adds of each layer, and their sums."""
    costs = [part.cost for part in parts]
    total = tuple(map(sum, zip(*costs, strict=True)))
    names = [*(part.about for part in parts), "all"]
    lines = [
        (name, *map(with_thousands, row)) for name, row in zip(names, [*costs, total], strict=True)
    ]
    return Table(
        ("layer", "weights", "index, bytes", "flash, bytes", "multiply-adds per series"), lines
    )


def _scale(rescale: Rescale) -> str:
    """Return shift, offset, back, low and high of the C program's ``scale_t``."""
    shift, low, high = rescale.shift, rescale.low, rescale.high
    offset, back = (1 << 62) + (1 << (shift - 1)), (1 << (62 - shift)) - rescale.zero
    return f"{shift}, INT64_C({offset}), INT64_C({back}), {low}, {high}"


def _in_comment(name: str) -> str:
    """Replace the characters of a name that would end a comment, a line or a table cell."""
    printable = "".join(char if char.isprintable() else " " for char in name)
    return printable.replace("*/", "* /").replace("/*", "/ *").replace("|", "/")


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
