"""Draw random numbers, and set the global generators back, one thread at a time."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

GLOBAL = threading.RLock()  # of those who set a global generator back


@contextmanager
def generators_kept(torchs: bool = True) -> Iterator[None]:
    """Restore Python's, NumPy's and torch's global generators, for one thread at a time."""
    with GLOBAL, torch.random.fork_rng(devices=[], enabled=torchs), ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        yield


@contextmanager
def borrowed(generator: torch.Generator) -> Iterator[None]:
    """Continue ``generator`` with torch's global generator, for one thread at a time."""
    with GLOBAL, torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield
        generator.set_state(torch.get_rng_state())


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Create floats as float32, whatever the process's default is, for one thread at a time."""
    with GLOBAL, ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield
