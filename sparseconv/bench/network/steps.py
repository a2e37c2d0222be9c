"""A training step of either side of the comparison, and the memory that it needs."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.bench.network.dense import Network, training_variants
from sparseconv.bench.network.masked import MaskedDST, masked_copy
from sparseconv.dst.scheduler import DSTScheduler
from sparseconv.measure.memory import peak_bytes
from sparseconv.models import DSN
from sparseconv.ops.backends import extension

NEVER = 10**9


class TrainingStep:
    """zero_grad, forward, loss, backward, Adam and masks, of a copy of ``model`` or of its twin.

    ``name`` is ``"sparse"``, ``"masked_dense"`` (as its authors run it), ``"dense_compiled"`` or
    one of ``training_variants``.

    Example:
        >>> step = TrainingStep(DSN(1, 2, nf=2, kernel_size=3, depth=2), "masked_dense")
        >>> step(torch.randn(4, 1, 9), torch.tensor([0, 1, 0, 1]))
    """

    def __init__(self, model: DSN, name: str, update_every: int = NEVER) -> None:
        if name == "sparse":
            self.model: nn.Module = copy.deepcopy(model).train()
        else:
            make = training_variants(model).get(name, lambda: masked_copy(model))
            self.model = make().train()
        # fused: Adam's fastest form for either side, and the one that train() uses.
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-4, fused=True)
        self.scheduler = (DSTScheduler if name == "sparse" else MaskedDST)(
            self.model,
            self.optimizer,
            update_every=update_every,
            end_step=NEVER,
            decay_steps=NEVER,
        )
        self._network = compiled(self.model) if name == "dense_compiled" else self.model

    def __call__(self, X: Tensor, y: Tensor) -> None:
        """Train on one batch."""
        self.optimizer.zero_grad()
        F.nll_loss(self._network(X), y).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()

    def peak_bytes(self, X: Tensor, y: Tensor) -> int:
        """The most bytes held at once in a step.

        Parameters, gradients, moments, masks or indices with their plans, and what torch's
        allocator has out during the step. The kernels' own scratch (a thread's, within L2) is not
        counted, nor oneDNN's.
        """
        self(X, y)  # makes gradients, moments and plans
        held = [*self.model.parameters(), *self.model.buffers()]
        held += [p.grad for p in self.model.parameters() if p.grad is not None]
        held += [t for state in self.optimizer.state.values() for t in state.values()]
        plans = 0
        for layer in self.model.sparse_layers() if isinstance(self.model, DSN) else ():
            arrays = layer.pattern.crow_indices, layer.pattern.col_indices
            held += arrays
            plans += extension.plan_bytes(*arrays) if extension is not None else 0
        known = sum(entry.nbytes for entry in held if isinstance(entry, Tensor))
        return known + plans + peak_bytes(partial(self, X, y))


def compiled(twin: nn.Module, **options: bool) -> Network:
    """``torch.compile`` for one shape; ``options`` are inductor's."""
    network: Network = torch.compile(twin, dynamic=False, options=dict(options))
    return network
