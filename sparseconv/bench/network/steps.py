"""Training steps of the two sides of the comparison, and the memory that one needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.bench.network.dense import Network, training_variants
from sparseconv.bench.network.masked import MaskedDST, masked_copy
from sparseconv.dst.scheduler import DSTScheduler
from sparseconv.measure.memory import peak_bytes
from sparseconv.models import DSN

NEVER = 10**9


def training_steps(
    model: DSN, names: Sequence[str] = ("sparse", "masked_dense"), *, update_every: int = NEVER
) -> dict[str, Callable[[Tensor, Tensor], None]]:
    """Training steps on a batch ``(X, y)``, of copies of ``model`` and of its masked-dense twin.

    Names are ``"sparse"``, ``"masked_dense"`` (as its authors run it), ``"dense_compiled"`` and
    those of ``training_variants``.

    Example:
        >>> steps = training_steps(DSN(1, 2, nf=2, kernel_size=3, depth=2))
        >>> steps["sparse"](torch.randn(4, 1, 9), torch.tensor([0, 1, 0, 1]))
    """
    makers: dict[str, Callable[[], nn.Module]] = training_variants(model) | {
        "sparse": lambda: copy.deepcopy(model),
        "masked_dense": lambda: masked_copy(model),
        "dense_compiled": lambda: masked_copy(model),
    }
    steps: dict[str, Callable[[Tensor, Tensor], None]] = {}
    for name in names:
        twin = makers[name]().train()
        # fused: Adam's fastest form for either side, and the one that train() uses.
        optimizer = torch.optim.Adam(twin.parameters(), lr=3e-4, fused=True)
        scheduler = (DSTScheduler if name == "sparse" else MaskedDST)(
            twin, optimizer, update_every=update_every, end_step=NEVER, decay_steps=NEVER
        )
        network = compiled(twin) if name == "dense_compiled" else twin
        steps[name] = partial(_step, network, optimizer, scheduler)
    return steps


def _step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    scheduler: DSTScheduler | MaskedDST,
    X: Tensor,
    y: Tensor,
) -> None:
    optimizer.zero_grad()
    F.nll_loss(network(X), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    scheduler.step()


def compiled(twin: nn.Module, **options: bool) -> Network:
    """``torch.compile`` for one shape; ``options`` are inductor's."""
    network: Network = torch.compile(twin, dynamic=False, options=dict(options))
    return network


def training_bytes(model: DSN, name: str, X: Tensor, y: Tensor) -> int:
    """The most bytes that one side of the comparison holds at once in a training step.

    Parameters, gradients, moments, masks or indices with their plans, and what torch's allocator
    has out during the step. The kernels' own scratch (a thread's, within L2) is not counted, nor
    oneDNN's.

    Args:
        model: the network.
        name: ``"sparse"`` or ``"masked_dense"``.
        X, y: a batch.
    """
    step = training_steps(model, [name])[name]
    step(X, y)  # makes gradients, moments and plans
    assert isinstance(step, partial)
    network, optimizer, _ = step.args
    held = [*network.parameters(), *network.buffers()]
    held += [p.grad for p in network.parameters() if p.grad is not None]
    held += [t for state in optimizer.state.values() for t in state.values()]
    if isinstance(network, DSN) and name == "sparse":
        for layer in network.sparse_layers():
            held += [layer.pattern.crow_indices, layer.pattern.col_indices]
            for plan in layer.pattern._cached.values():
                held += [t for t in (plan if isinstance(plan, tuple) else (plan,))
                         if isinstance(t, Tensor)]  # fmt: skip
    held_bytes: int = sum(t.numel() * t.element_size() for t in held)
    return held_bytes + peak_bytes(partial(step, X, y))
