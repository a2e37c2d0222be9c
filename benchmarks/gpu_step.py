"""The whole network's training steps: sparse with pattern updates, beside dense; eager and graphed.

Dense is the same network with ``nn.Conv1d`` in the place of each sparse convolution: no masks are
applied, which makes it a faster rival than masked training is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_target import PRECISIONS, Call, Candidate, Target, compiled, relative, tf32
from sparseconv import DSTScheduler, SparseConv1d
from sparseconv.models import DSN
from sparseconv.training.graphed import GraphedStep
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

BATCH = 16
BATCHES = 4  # different ones, in turns
NEVER = 10**9
Row = dict[str, Any]


def network(target: Target, kernel: str) -> DSN:
    sizes = target.sizes
    torch.manual_seed(0)
    return DSN(
        1,
        2,
        nf=sizes.nf,
        kernel_size=sizes.kernel_size,
        depth=sizes.depth,
        padding="centred-zeros",
        backend=target.backend(kernel),
    ).to(target.device)


def dense_twin(model: nn.Module) -> nn.Module:
    """The network with every tap of its kernels, and their values where the sparse one has some."""
    twin = copy.deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, SparseConv1d):
            twin.set_submodule(name, layer.to_dense())
    return twin


def batches(length: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Series ``(count * BATCH, 1, length)`` and their classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count * BATCH, 1, length, generator=generator)
    y = torch.randint(0, 2, (count * BATCH,), generator=generator)
    return x.to(device), y.to(device)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    half = PRECISIONS[precision][0] == torch.bfloat16
    # Cached casts of weights would be those of the capture.
    return torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False)


def gradients(model: nn.Module, x: Tensor, y: Tensor, sparse: DSN) -> Tensor:
    """All gradients of a batch, flat; of dense kernels those of weights active in ``sparse``."""
    F.nll_loss(model(x), y).backward()
    patterns = {
        name: m.pattern for name, m in sparse.named_modules() if isinstance(m, SparseConv1d)
    }
    found = []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        grad, layer = parameter.grad.flatten(), name.rpartition(".")[0]
        if layer in patterns and name.endswith(".weight"):
            grad = grad[patterns[layer].positions().to(grad.device)]
        found.append(grad)
    return torch.cat(found)


def error(model: nn.Module, sparse: DSN, x: Tensor, y: Tensor, precision: str) -> float:
    """How far the gradients of one batch are from those of the dense network in float64."""
    exact = gradients(dense_twin(sparse).double().train(), x.double(), y, sparse)
    with autocast(precision, x.device):
        return relative(gradients(copy.deepcopy(model).train(), x, y, sparse), exact)


def steps(model: nn.Module, target: Target, length: int, precision: str, mode: str) -> Call:
    """Some steps of training: forward, backward, Adam; then one update of the patterns."""
    on_gpu = target.device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), 3e-4, fused=True, capturable=on_gpu)
    x, y = (t.unflatten(0, (BATCHES, BATCH)) for t in batches(length, BATCHES, target.device))
    scheduler = None
    if any(isinstance(layer, SparseConv1d) for layer in model.modules()):
        scheduler = DSTScheduler(
            model, optimizer, update_every=target.sizes.steps, end_step=NEVER, decay_steps=NEVER
        )

    forward = compiled(model) if mode == "compiled" else model

    def eager(series: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
        optimizer.zero_grad()
        with autocast(precision, series.device):
            loss = F.nll_loss(forward(series), classes)
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    step: Callable[..., Any] = GraphedStep(model, eager, optimizer) if mode == "graph" else eager

    def run() -> None:
        for i in range(target.sizes.steps):
            # As train() does: gradient growth watches the step before an update by hooks.
            take = eager if scheduler is not None and i == target.sizes.steps - 1 else step
            take(x[i % BATCHES], y[i % BATCHES])
            if scheduler is not None:
                scheduler.step()

    return run


def step_row(
    target: Target,
    length: int,
    kernels: list[str],
    precisions: list[str],
    rounds: int,
    kind: str = "step",
) -> Row:
    """One step, with its share of an update: sparse networks and a dense one, in turns.

    Of kind ``"compiled"``, the dense network is that of torch.compile, and all else is graphed: a
    sparse one would be compiled anew for each pattern.
    """
    if kind == "compiled":
        torch.compiler.reset()
    x, y = batches(length, 1, target.device)
    candidates, errors, absent = {}, {}, {}
    for precision in precisions:
        allowed = PRECISIONS[precision][1]
        sparse = {name: network(target, name).train() for name in kernels}
        models: dict[str, nn.Module] = {**sparse}
        models["dense"] = dense_twin(sparse[kernels[0]])
        for name, model in models.items():
            if precision == "bf16" and name != "dense":
                continue  # autocast would run sparse kernels in bfloat16, which is no gain there
            label = f"{name} {precision}"
            with tf32(allowed):
                errors[label] = error(model, sparse[kernels[0]], x, y, precision)
            modes = ("eager", "graph") if target.is_gpu else ("eager",)
            if kind == "compiled":
                modes = ("compiled", "graph") if name == "dense" else ("graph",)
            for mode in modes:
                twin = copy.deepcopy(model).train()
                call = steps(twin, target, length, precision, mode)
                try:
                    with tf32(allowed):
                        call()
                except RuntimeError as reason:
                    absent[f"{label} {mode}"] = str(reason)
                else:
                    candidates[f"{label} {mode}"] = Candidate(call, allowed)
    samples = target.samples(candidates, rounds=rounds, least_seconds=0, steps=target.sizes.steps)
    return {
        "kind": kind, "computation": "training step", "length": length, "batch": BATCH,
        "samples_ms": samples, "error": errors, "absent": absent,
    }  # fmt: skip


def train_row(target: Target, length: int) -> Row:
    """Epochs of ``train``, of 10 batches each: what a user waits for, updates and all."""
    X, y = batches(length, 10, target.device)
    recipe = Recipe(epochs=target.sizes.epochs, batch_size=BATCH)
    sparse = network(target, target.first)
    samples = {}
    for name, model in ((target.first, sparse), ("dense", dense_twin(sparse))):
        for mode in ("eager", "graph") if target.is_gpu else ("eager",):
            twin, graphed = copy.deepcopy(model), mode == "graph"
            history = train(twin, X, y, recipe, progress=False, cuda_graphs=graphed).history
            # The first epochs load, try algorithms and capture.
            samples[f"{name} TF32 {mode}"] = [1e3 * row["seconds"] for row in history[2:]]
    return {
        "kind": "train", "computation": "epoch of train()", "length": length, "batch": BATCH,
        "samples_ms": samples, "error": {},
    }  # fmt: skip


def rows(target: Target, lengths: list[int], rounds: int) -> Iterator[Row]:
    """Short series first: there launches decide, and graphs."""
    for length in lengths:
        yield step_row(target, length, [target.first], list(PRECISIONS), rounds)
    with tf32(True):  # PyTorch's default for convolutions
        yield train_row(target, lengths[0])
