"""What looks at more than a network's output, or changes how torch runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode


def flops(network: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops()


def autocast(network: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return network(x)


def vmap(network: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda x: network(x[None])[0], randomness="same")(x)


def forward_mode(network: nn.Module, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(network(forward_ad.make_dual(x, x.cos()))).tangent


# Each gives what a network can be compared by with one that computes the same.
WATCHERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "flops": flops,
    "autocast": autocast,
    "vmap": vmap,
    "forward mode": forward_mode,
    "jvp": lambda network, x: torch.func.jvp(network, (x,), (x.cos(),))[1],
    "grad": lambda network, x: torch.func.grad(lambda x: network(x).square().sum())(x),
    "compile": lambda network, x: torch.compile(network, backend="aot_eager", fullgraph=True)(x),
    "script": lambda network, x: torch.jit.script(network)(x),
    "trace": lambda network, x: torch.jit.trace(network, x, check_trace=False)(x),
}
