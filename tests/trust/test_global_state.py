"""The process as a caller finds it afterwards: what it had set is as it was.

Imports, training, updates, inference and profiling run in a fresh process, which is this file.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import gc
import locale
import logging
import multiprocessing
import os
import platform
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

FE_UPWARD = 0x800


def mxcsr() -> str | None:
    """Read rounding, masks, flush-to-zero and denormals-are-zero, without the sticky flags."""
    if platform.machine() != "x86_64":
        return None
    environment = (ctypes.c_uint32 * 8)()
    libm().fegetenv(environment)
    return hex(environment[7] & 0xFFC0)


def libm() -> Any:
    return ctypes.CDLL(ctypes.util.find_library("m"))


def in_a_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def state() -> dict[str, Any]:
    return {
        "mxcsr": mxcsr(), "mxcsr of a thread": in_a_thread(mxcsr),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(np.random.get_state()),
        "python generator": str(random.getstate()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "python threads": threading.active_count(),
        "torch": [
            torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.is_anomaly_enabled(), torch.backends.mkldnn.enabled,
            torch.__future__.get_swap_module_params_on_conversion(),
        ],
        "numpy errors": np.geterr(), "collector": [gc.isenabled(), gc.get_threshold()],
        "environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path),
        "imports": [list(sys.meta_path), list(sys.path_hooks)],
        "warnings": list(warnings.filters),
        "logging": [list(logging.root.handlers), logging.root.level],
        "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "hooks": [sys.excepthook, sys.displayhook, sys.gettrace(), sys.getprofile()],
        "limits": [sys.getrecursionlimit(), sys.getswitchinterval()],
        "locale": locale.setlocale(locale.LC_ALL),
        "start method": multiprocessing.get_start_method(allow_none=True),
    }  # fmt: skip


def compare(before: dict[str, Any], what: str) -> None:
    after = state()
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert not changed, (what, str(changed)[:2000])


class Watched:
    """Notes each change of the environment and of signal handlers, however short."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        sys.addaudithook(self.note)
        self.handle, signal.signal = signal.signal, self.signal  # type: ignore[assignment]

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ("os.putenv", "os.unsetenv"):
            self.seen.append(f"{event} {args}")

    def signal(self, *args: Any) -> Any:
        self.seen.append(f"signal.signal {args}")
        return self.handle(*args)

    def nothing_since(self, what: str) -> None:
        assert not self.seen, (what, self.seen)


def training_and_inference(sc: Any, watched: Watched) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        sc.SparseConv1d(4, 24, 39, padding="same", density=0.2), torch.nn.BatchNorm1d(24),
        torch.nn.ReLU(), sc.SparseConv1d(24, 4, 9, density=0.3),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters())
    dst = sc.DSTScheduler(network, optimizer, update_every=2, end_step=9, grow="gradient")
    x = torch.randn(4, 4, 900)
    x[0, 0, :9] = 1e-40  # denormal inputs reach the kernels

    def step() -> bool:
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
        return dst.step()

    step()  # torch imports a compiler
    assert step()
    watched.seen.clear()
    before = state()
    assert not step()
    compare(before, "a training step")
    watched.nothing_since("a training step")
    assert step()
    compare(before, "an update")
    fast = sc.optimize_for_inference(network)
    with torch.inference_mode():
        fast(x)
        with contextlib.suppress(RuntimeError):
            fast(torch.zeros(1, 3, 50))
    compare(before, "inference and an error")


def profiling(sc: Any, watched: Watched) -> None:
    network = torch.nn.Sequential(sc.SparseConv1d(4, 8, 9, density=0.3), torch.nn.ReLU())
    x = torch.randn(2, 4, 40)
    sc.profile(network, x, rounds=6, least_seconds=1e-6)  # loads what it needs
    before = state()
    watched.seen.clear()
    sc.profile(network, x, rounds=6, least_seconds=1e-6)
    watched.nothing_since("profile")
    compare(before, "profile")


def floating_point_modes(sc: Any) -> None:
    """The caller's modes are obeyed and kept."""
    layer = sc.SparseConv1d(2, 2, 3, pattern=sc.KernelCSR.full((2, 2, 3)), bias=False)
    x = torch.full((1, 2, 64), torch.finfo(torch.float32).tiny)
    torch.nn.init.constant_(layer.values, 0.03125)
    for flush in (True, False):
        assert torch.set_flush_denormal(flush)
        before = state()
        assert (float(layer(x).abs().max()) == 0) == flush
        compare(before, f"flush {flush}")
    libm().fesetround(FE_UPWARD)
    before = state()
    layer(x)
    compare(before, "another rounding mode")
    libm().fesetround(0)


def main() -> None:
    watched, before = Watched(), state()
    import sparseconv as sc

    compare(before, "import sparseconv")
    watched.nothing_since("import sparseconv")
    training_and_inference(sc, watched)
    profiling(sc, watched)
    floating_point_modes(sc)
    print("{}")


if __name__ == "__main__":
    main()
else:
    import pytest
    from child import run_child

    @pytest.mark.promise("P8")
    @pytest.mark.tool("torch.set_flush_denormal", "works", "the caller's mode, kept and obeyed")
    def test_nothing_global_changes() -> None:
        run_child("test_global_state", environment={"OMP_NUM_THREADS": "2"})

    @pytest.mark.promise("P8")
    def test_fits_change_nothing_and_errors_of_numpy_may_be_raised(tmp_path: Any) -> None:
        """Small numbers become 0, also where the caller's own code may not underflow."""
        pytest.importorskip("aeon")
        import sparseconv as sc

        rng = np.random.default_rng(0)
        X = rng.normal(size=(30, 1, 60))
        X[::2] += np.sin(np.linspace(0, 20, 60))
        X[3, 0, 7] = 1e-60  # in float32, 0
        y = np.array(["a", "b"] * 15)
        with np.errstate(all="raise"):
            for options in ({"keep": "cv"}, {"kernels": "minirocket"}, {"refit": False}):
                pocket = sc.POCKETClassifier(n_kernels=100, random_state=0, **options).fit(X, y)
                for scale in (1e-30, 1, 1e30):
                    assert np.isfinite(pocket.predict_proba(scale * X)).all()
                    assert np.isfinite(pocket.model_.predict_proba(scale * X)).all()
                    pocket.score(scale * X, y)
            dsn = sc.DSNClassifier(nf=4, depth=1, kernel_size=9, epochs=2, random_state=0)
            dsn.fit(X, y).predict(X)  # the imports of aeon are not what is looked at
            torch.manual_seed(5)  # or a fit that seeds would leave what the first one left
            before = state()
            dsn.fit(X, y).predict_proba(1e3 * X)
            compare(before, "fit and predict")
            for weights in ("float32", "int8"):
                known = None if weights == "float32" else X
                for scale in (1e-30, 1e3):
                    folder = tmp_path / f"{weights} {scale}"
                    sc.export_c(
                        dsn.model_, scale * X, folder, weights=weights,
                        calibration=None if known is None else scale * known,
                    )  # fmt: skip
            sc.profile(dsn.model_, X[:2], rounds=6, least_seconds=1e-6).save(tmp_path / "a.html")
            sc.prune_filters(dsn.model_, X, sc.pruning.WHC(), fraction=0.5)[1].save(
                tmp_path / "b.html"
            )
            assert np.geterr()["under"] == "raise"
