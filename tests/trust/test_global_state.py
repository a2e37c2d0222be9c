"""What the process is like afterwards.

Imports, training, inference and updates leave the floating-point mode, the generators, the threads
and the environment as they were; each is looked at in a fresh process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What can be global, as printable values. Everything is read before sparseconv is imported.
PROBE = r"""
import ctypes, ctypes.util, gc, json, locale, logging, multiprocessing, os, platform, random
import signal, sys, threading, warnings
import numpy as np
import torch

def mxcsr():
    'Rounding, masks, flush-to-zero and denormals-are-zero; the sticky flags are no setting.'
    if platform.machine() != 'x86_64':
        return None
    environment = (ctypes.c_uint32 * 8)()
    ctypes.CDLL(ctypes.util.find_library('m')).fegetenv(environment)
    return hex(environment[7] & 0xFFC0)

def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start(), thread.join()
    return found[0]

def denormals():
    'Halves of the smallest normal numbers; in vectors, so that torch threads compute some too.'
    tiny = torch.full((100_000,), torch.finfo(torch.float32).tiny)
    return [
        5e-324 * 1.0, float(np.float32(1e-40) * np.float32(1.0)),
        int((tiny * 0.5 > 0).sum()), float((tiny.double() * 1e-300).max()),
        int(((tiny * 0.5) * 1.5 > 0).sum()),
    ]

def state():
    return {
        'mxcsr': mxcsr(), 'mxcsr of a thread': in_a_thread(mxcsr), 'denormals': denormals(),
        'torch generator': torch.get_rng_state().tolist(),
        'numpy generator': str(np.random.get_state()),
        'python generator': str(random.getstate()),
        'threads': [torch.get_num_threads(), torch.get_num_interop_threads()],
        'python threads': threading.active_count(),
        'torch': str([
            torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), torch.is_autocast_enabled('cpu'),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.is_anomaly_enabled(), torch.backends.mkldnn.enabled,
            torch.__future__.get_swap_module_params_on_conversion(),
        ]),
        'numpy errors': str(np.geterr()),
        'environment': dict(os.environ), 'folder': os.getcwd(), 'path': list(sys.path),
        'warnings': str(warnings.filters),
        'logging': str([logging.root.handlers, logging.root.level]),
        'signals': str([signal.getsignal(s) for s in signal.valid_signals()]),
        'hooks': str([sys.excepthook, sys.displayhook, sys.gettrace(), sys.getprofile()]),
        'limits': [sys.getrecursionlimit(), sys.getswitchinterval(), gc.get_threshold()],
        'collector': gc.isenabled(),
        'locale': locale.setlocale(locale.LC_ALL),
        'start method': multiprocessing.get_start_method(allow_none=True),
    }

def compare(before, what):
    after = state()
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert not changed, (what, str(changed)[:2000])

import sympy, torch.utils.flop_counter  # what torch's own lazy imports do is not ours
"""

USE = r"""
before = state()
import sparseconv as sc
compare(before, 'import sparseconv')

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        sc.SparseConv1d(4, 24, 39, padding='same', density=.2), torch.nn.BatchNorm1d(24),
        torch.nn.ReLU(), sc.SparseConv1d(24, 4, 9, density=.3, dtype=torch.float32),
    )

network = model()
optimizer = torch.optim.Adam(network.parameters())
dst = sc.DSTScheduler(network, optimizer, update_every=1, end_step=9, grow='gradient')
x = torch.randn(4, 4, 900)
x[0, 0, :9] = 1e-40  # denormal inputs reach the kernels
network(x).square().mean().backward()
optimizer.step()
optimizer.zero_grad()

def step():
    network(x).square().mean().backward()
    optimizer.step()

before = state()
step()
compare(before, 'a training step')
assert dst.step()
compare(before, 'an update')
fast = sc.optimize_for_inference(network)
with torch.inference_mode():
    fast(x)
compare(before, 'inference')
torch.autograd.grad(network(x.requires_grad_()).sum(), x, create_graph=True)[0].sum().backward()
compare(before, 'a graph of gradients')
sc.SparseConv1d.from_dense(network[0].to_dense()).load_state_dict(network[0].state_dict())
compare(before, 'conversions')
try:
    network[0](torch.zeros(1, 3, 50))
except ValueError:
    compare(before, 'an error')
"""

FLUSHED = r"""
import sparseconv as sc
layer = sc.SparseConv1d(2, 2, 3, pattern=sc.KernelCSR.full((2, 2, 3)), bias=False)
x = torch.full((1, 2, 64), torch.finfo(torch.float32).tiny)

def smallest():
    with torch.no_grad():
        layer.values.fill_(0.03125)
        return float(layer(x).abs().max())

assert smallest() > 0, 'denormal outputs were flushed'
for flush in (True, False):
    assert torch.set_flush_denormal(flush)
    before = state()
    assert (smallest() == 0) == flush  # it is the caller's to decide
    compare(before, f'flush {flush}')
libm = ctypes.CDLL(ctypes.util.find_library('m'))
FE_UPWARD = 0x800
assert libm.fesetround(FE_UPWARD) == 0
before = state()
smallest()
compare(before, 'another rounding mode')
assert libm.fegetround() == FE_UPWARD
"""

NOTICED = r"""
for change in (
    'torch.set_flush_denormal(True)', 'libm.fesetround(0x400)', 'np.random.rand()',
    'torch.rand(1)', 'random.random()', 'torch.set_num_threads(3)', 'os.environ["X"] = "1"',
    'torch.set_default_dtype(torch.float64)', 'warnings.simplefilter("error")',
    'np.seterr(under="raise")', 'torch.backends.mkldnn.set_flags(False)', 'sys.path.append("x")',
    'multiprocessing.set_start_method("spawn")', 'signal.signal(signal.SIGUSR1, print)',
):
    before = state()
    exec(change)
    try:
        compare(before, change)
    except AssertionError:
        continue
    raise SystemExit(f'{change} went unnoticed')
"""

CLASSIFIER = r"""
import sparseconv as sc
sc.DSNClassifier  # aeon, scikit-learn and their imports are not what is looked at
X = np.sin(np.outer(1 + np.arange(12) % 2, np.linspace(0, 20, 40)))
y = np.array(['slow', 'fast'] * 6)
def fit():
    sc.DSNClassifier(nf=4, kernel_size=9, epochs=2, random_state=0, n_jobs=1).fit(X, y).predict(X)
fit()
before = state()
fit()
compare(before, 'fit and predict')
"""


def run(*parts: str) -> None:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(parts)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.promise("P8")
@pytest.mark.tool("torch.set_flush_denormal", "works", "the caller's mode, kept and obeyed")
def test_import_training_and_inference_change_nothing() -> None:
    run(PROBE, USE, FLUSHED, NOTICED)  # the last: that the probe would see a change


@pytest.mark.promise("P8")
def test_fitting_a_classifier_changes_nothing() -> None:
    pytest.importorskip("aeon")
    run(PROBE, CLASSIFIER)
