"""Exported programs, compiled and called from here."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
COMPILERS = ("gcc", "clang")
Floats = npt.NDArray[np.float32]


def run(words: Sequence[object], folder: Path) -> str:
    """What a command prints; the test fails if it does, and is skipped without the tool."""
    try:
        done = subprocess.run([str(word) for word in words], cwd=folder, capture_output=True,
                              text=True, check=False)  # fmt: skip
    except FileNotFoundError:
        pytest.skip(f"{words[0]} is not installed")
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"[-4000:]
    return done.stdout


class Program:
    """The program ``name`` in a folder, as a library of this process."""

    def __init__(
        self,
        folder: Path,
        name: str = "dsn",
        compiler: str = "gcc",
        flags: Sequence[str] = ("-O2",),
    ) -> None:
        library = folder / f"{name}_{compiler}{''.join(flags)}.so"
        source = "-shared", "-fPIC", f"{name}.c", "-lm", "-o", library
        run([compiler, *FLAGS, *flags, *source], folder)
        loaded = ctypes.CDLL(str(library))
        self._predict, self._scores = loaded[f"{name}_predict"], loaded[f"{name}_scores"]
        header = (folder / f"{name}.h").read_text()
        sizes = {key: int(number) for key, number in re.findall(r"_([A-Z]+) (\d+)", header)}
        self.shape = sizes["CHANNELS"], sizes["LENGTH"]
        self.classes = sizes["CLASSES"]

    def scores(self, X: Floats) -> Floats:
        """``(n_cases, n_classes)`` of series ``(n_cases, channels, length)``."""
        assert X.shape[1:] == self.shape
        out = np.full((len(X), self.classes), np.nan, np.float32)
        for x, row in zip(np.ascontiguousarray(X, np.float32), out, strict=True):
            self._scores(x.ctypes.data_as(ctypes.c_void_p), row.ctypes.data_as(ctypes.c_void_p))
        return out

    def labels(self, X: Floats) -> list[int]:
        series = np.ascontiguousarray(X, np.float32)
        return [self._predict(x.ctypes.data_as(ctypes.c_void_p)) for x in series]
