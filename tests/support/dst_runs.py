"""What the tests of dynamic sparse training run, and what they compare."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv import DSTScheduler, Region, SparseConv1d

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, 1e-2),
    "SGD": lambda p: torch.optim.SGD(p, 1e-2),
    "SGD momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Rprop": lambda p: torch.optim.Rprop(p, 1e-3),
    "Adam fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "Adam foreach": lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    "Adamax": lambda p: torch.optim.Adamax(p, 1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, 1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, 1e-2),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 1e-2),
    "SGD fused": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, fused=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, 1e-2, fused=True),
}


def two_layers(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """The first layer has two regions and a weight outside both, the second the default one."""
    torch.manual_seed(seed)
    first = SparseConv1d(2, 6, 7, padding="same", density=0.4, dtype=dtype)
    first.regions = (Region((0, 3), (0, 4)), Region((3, 6), (0, 7)))
    second = SparseConv1d(
        6, 4, 5, padding=(0, 4), padding_mode="replicate", density=0.3, dtype=dtype
    )
    return nn.Sequential(first, nn.Tanh(), second)


def in_blocks(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Like ``two_layers``, in blocks, of which some last ones are smaller."""
    torch.manual_seed(seed)
    first = SparseConv1d(2, 6, 7, padding="same", density=0.4, block=(4, 2), dtype=dtype)
    first.regions = (Region((0, 4), (0, 4)), Region((4, 6), (0, 7)))
    second = SparseConv1d(6, 4, 5, density=0.3, block=(2, 4), dtype=dtype)
    return nn.Sequential(first, nn.Tanh(), second)


def scheduled(
    model: nn.Module | None = None, optimizer: str = "SGD", **settings: Any
) -> tuple[Any, torch.optim.Optimizer, DSTScheduler]:
    """A model (default: ``two_layers``), its optimizer, and a scheduler of one update a step."""
    model = two_layers() if model is None else model
    algorithm = OPTIMIZERS[optimizer](model.parameters())
    settings = {"update_every": 1, "end_step": 9, **settings}
    return model, algorithm, DSTScheduler(model, algorithm, **settings)


def sparse_layers(model: nn.Module) -> list[SparseConv1d]:
    return [layer for layer in model.modules() if isinstance(layer, SparseConv1d)]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def batches(dtype: torch.dtype = torch.float32, seed: int = 1) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(3, 2, 20, generator=generator, dtype=dtype)


def amounts(layer: SparseConv1d) -> list[int]:
    mask = layer.pattern.to_mask()
    return [int(mask[slice(*r.out_channels), :, slice(*r.taps)].sum()) for r in layer.regions]


def snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, dst: DSTScheduler | None = None
) -> Any:
    """Everything that an update may touch, as independent copies."""
    return copy.deepcopy(
        (
            [(layer.pattern, layer.values.grad) for layer in sparse_layers(model)],
            model.state_dict(),
            optimizer.state_dict(),
            dst and dst.state_dict(),
            torch.get_rng_state(),
        )
    )
