"""Draw random numbers without changing the global generators, whatever other threads draw."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


class Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Let this thread's random operations on the CPU draw from a new generator, slowly."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator, self.drew = torch.Generator("cpu").manual_seed(seed), False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator"):
            return func(*args, **kwargs)
        self.drew = True
        devices = {kwargs.get("device") or "cpu", *(getattr(x, "device", "cpu") for x in args)}
        if {torch.device(device).type for device in devices} != {"cpu"}:
            return func(*args, **kwargs)
        if func._overloadname == "default":  # randperm, for one, has another
            func = getattr(func.overloadpacket, "generator", func)
        if any(argument.name == "generator" for argument in func._schema.arguments):
            return func(*args, **kwargs | {"generator": self.generator})
        with borrowed(self.generator):
            return func(*args, **kwargs)
