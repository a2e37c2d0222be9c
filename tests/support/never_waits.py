"""Find on a CPU what a GPU would have to answer before the next operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "bincount")


class NeverWaits(TorchDispatchMode):
    """Refuses sizes and numbers that depend on content, but those just drawn: on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn: list[Tensor] = []
        self._lifted: list[Tensor] = []  # tensors that torch made of a number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        parts = [x for x in args if isinstance(x, (list, tuple)) and name.startswith("index")]
        waits = any(x.dtype == torch.bool for part in parts for x in part if x is not None)
        waits |= name.startswith(WAITS) or (
            str(func) == "aten.repeat_interleave.Tensor" and not (kwargs or {}).get("output_size")
        )
        if waits and not any(args[0].data_ptr() == x.data_ptr() for x in self._drawn):
            raise AssertionError(f"{func} waits for the device")
        if name == "copy_" and any(args[1] is tensor for tensor in self._lifted):
            raise AssertionError("a number is copied from the CPU, which waits for the device")
        result = func(*args, **(kwargs or {}))
        if name == "lift_fresh":
            self._lifted.append(result)
        if name == "randint":
            self._drawn.append(result)
        return result
