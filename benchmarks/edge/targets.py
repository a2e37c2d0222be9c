"""Processors to compile for, natively or in QEMU."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.recording import output
from sparseconv.edge.layers import TINY, UNIT, Layer, Network

Series = npt.NDArray[np.float32]
SOURCES = Path(__file__).with_name("c")
FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
_CORTEX_M = ("-fdata-sections", "--specs=rdimon.specs", "-T", f"{SOURCES / 'cortex_m.ld'}",
             f"{SOURCES / 'cortex_m.c'}")  # fmt: skip
_SEMIHOSTING = ("-nographic", "-monitor", "none", "-serial", "none", "-semihosting-config",
                "enable=on,target=native")  # fmt: skip
_PACKAGES = {
    "gcc": "gcc", "clang": "clang", "size": "binutils",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "arm-none-eabi-size": "binutils-arm-none-eabi", "qemu-system-arm": "qemu-system-arm",
    "riscv64-linux-gnu-gcc": "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross",
    "riscv64-linux-gnu-size": "binutils-riscv64-linux-gnu", "qemu-riscv64": "qemu-user",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    name: str
    compiler: str  # with its prefix
    flags: Sequence[str] = ()
    link: Sequence[str] = ()  # what a whole program needs in addition
    emulator: Sequence[str] = ()  # the words before the program's file; none: it runs here

    @property
    def size(self) -> str:
        prefix, dash, _ = self.compiler.rpartition("-")
        return f"{prefix}{dash}size"

    def missing(self) -> str:
        """Name the Debian packages that the target needs but lacks, or return ""."""
        tools = (self.compiler, self.size, *self.emulator[:1])
        return " ".join(_PACKAGES[tool] for tool in tools if not shutil.which(tool))

    def versions(self) -> dict[str, str]:
        """Return the tools' versions, which determine sizes and instruction counts."""
        tools = (self.compiler, *self.emulator[:1])
        return {tool: output(SOURCES, tool, "--version").splitlines()[0] for tool in tools}

    @property
    def counts(self) -> bool:
        """Return whether the target has a timer that counts instructions."""
        return self.emulator[:1] == ("qemu-system-arm",)


def _cortex(name: str, cpu: str, fpu: str, board: str) -> Target:
    flags = ("-mthumb", f"-mcpu={cpu}", "-mfloat-abi=hard", f"-mfpu={fpu}")
    return Target(name, "arm-none-eabi-gcc", flags, _CORTEX_M,
                  ("qemu-system-arm", "-M", board, *_SEMIHOSTING, "-kernel"))  # fmt: skip


TARGETS = (
    Target("x86-64", "gcc"),
    _cortex("Cortex-M4", "cortex-m4", "fpv4-sp-d16", "mps2-an386"),
    _cortex("Cortex-M7", "cortex-m7", "fpv5-sp-d16", "mps2-an500"),
    Target("RISC-V 64", "riscv64-linux-gnu-gcc", (), ("-static",), ("qemu-riscv64",)),
)


def available() -> list[Target]:
    """Return the targets that can run here; print what to install for the others."""
    found = []
    for target in TARGETS:
        if missing := target.missing():
            print(f"{target.name}: skipped; to add it, run apt-get install {missing}", flush=True)
        else:
            found.append(target)
    return found


def predict(
    target: Target, program: Path, X: Series, classes: int, *, labels: bool = True
) -> tuple[npt.NDArray[np.int32], Series]:
    """Return the labels and scores that the program ``net`` in a folder computes for series.

    Without ``labels``, call only ``net_scores``.
    """
    sources = [str(SOURCES / "predict.c"), "net.c", f"-DLABELS={int(labels)}"]
    compiled = _compile(target, program, sources)
    (program / "series.bin").write_bytes(np.ascontiguousarray(X, np.float32).tobytes())
    output(program, *target.emulator, compiled)
    kind = np.dtype([("label", "<i4"), ("scores", "<f4", (classes,))])
    out = np.fromfile(program / "scores.bin", kind)
    return out["label"].copy(), out["scores"].copy()


def count(target: Target, program: Path, definitions: Sequence[str] = ()) -> dict[str, int]:
    """Count the instructions of one prediction, in total (``all``) and by layer number."""
    text = (program / "net.c").read_text(encoding="utf-8")
    calls = re.findall(r"^    (\w+\(.*, &layer_(\d+)\));$", text, re.MULTILINE)
    steps = " ".join(f"COUNT({call});" for call, _ in calls)
    compiled = _compile(
        target, program, [str(SOURCES / "count.c"), f"-DSTEPS={steps}", *definitions]
    )
    printed = output(program, *target.emulator[:-1], "-icount", "shift=0", "-kernel", compiled)
    names = ["all", *(layer for _, layer in calls)]
    return dict(zip(names, map(int, printed.split()), strict=True))


def used_of_bound(program: Path, network: Network, X: Series) -> float:
    """Return the largest ratio of a layer output's error to its bound, natively.

    A layer's output is compared with the float64 result for the same input. The bound for a sum of
    n active weights is (n + 3) * 2**-24 times the sum of the terms' magnitudes.
    """
    (program / "series.bin").write_bytes(np.ascontiguousarray(X, np.float32).tobytes())
    text = (program / "net.c").read_text(encoding="utf-8")
    body = text.partition("sample_t *const x = arena.x;")[2].partition("return")[0]
    steps, layers = [], iter(network.layers)
    for statement in body.strip().splitlines():
        call = statement.strip().rstrip(";")
        if found := re.fullmatch(r"\w+\((.*), (.*), &layer_\d+\)", call):
            layer = next(layers)
            call = f"LAYER(({call}), {found[1]}, {layer.padded}, {found[2]}, {_span(layer)})"
        steps.append(f"{call};")
    sources = [str(SOURCES / "layers.c"), f"-DSTEPS={' '.join(steps)}"]
    output(program, _compile(TARGETS[0], program, sources))
    tensors = np.fromfile(program / "layers.bin", np.float32).astype(float).reshape(len(X), -1)
    used, at = 0.0, 0
    for layer in network.layers:
        x = tensors[:, at : at + layer.padded]
        y = tensors[:, at + layer.padded + layer.places - layer.first]
        at += layer.padded + _span(layer)
        exact = layer.finished(layer.sums(x, layer.weight) + layer.bias)
        magnitude = layer.sums(np.abs(x), np.abs(layer.weight)) + np.abs(layer.bias)
        bound = (layer.active.sum(1) + 3) * (UNIT * magnitude + TINY)
        used = max(used, float((np.abs(y - exact) / bound).max()))
    return used


def _span(layer: Layer) -> int:
    """Count the samples from a layer's first to last result; others may lie between."""
    return int(layer.places.max()) - layer.first + 1


def straightforward(target: Target, folder: Path, is_int8: bool) -> int:
    """Count instructions of a plain-loop layer: 47 to 141 channels, 39 taps, 150 samples."""
    for file in (SOURCES / "straightforward").iterdir():
        shutil.copy(file, folder)
    types = ("int8_t", "int32_t") if is_int8 else ("float", "float")
    definitions = [f"-D{name}={kind}" for name, kind in zip(("SAMPLE", "SUM"), types, strict=True)]
    return count(target, folder, definitions)["0"]


def sizes(target: Target, program: Path) -> dict[str, int]:
    """Return the network's bytes: ``text`` (code and constants), ``data`` and ``bss``."""
    output(program, target.compiler, *FLAGS, *target.flags, "-c", "net.c", "-o", "net.o")
    header, row = output(program, target.size, "net.o").splitlines()
    named = dict(zip(header.split(), row.split(), strict=True))
    return {name: int(named[name]) for name in ("text", "data", "bss")}


def _compile(target: Target, program: Path, sources: Sequence[str]) -> str:
    compiled = str(program / re.sub(r"\W", "_", target.name))
    more = f"-I{program}", *sources, *target.link, "-lm", "-o", compiled
    output(program, target.compiler, *FLAGS, *target.flags, *more)
    return compiled
