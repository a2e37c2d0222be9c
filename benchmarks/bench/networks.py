"""Compare a whole sparse network with the dense one: training, inference, latency, memory.

The baselines are mask-based sparse training (``masked_dense``), the fastest PyTorch settings
(``dense_best``, named in the row), and ``torch.compile``. Before timing, sparse layers, the
gradients of training and the outputs of inference are compared with float64. A wrong result raises
``WrongResultError``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench.cases import layer_problem
from benchmarks.bench.masked import MaskedDST, MatrixPool, Network, images_of, masked_copy, scripted
from benchmarks.bench.peaks import peak_bytes
from benchmarks.bench.run import WrongResultError, check, first_line, times_and_ratios
from sparseconv.dst.scheduler import DSTScheduler
from sparseconv.inference import optimize_for_inference
from sparseconv.measure import timing
from sparseconv.measure.machine import threads
from sparseconv.measure.table import threads_text
from sparseconv.models import DSN
from sparseconv.nn.conv import SparseConv1d
from sparseconv.ops.backends import extension

MODES = {
    "train": "training step",
    "update": "… with an update",
    "blocks": "training step, blocks in bfloat16",
    "inference": "inference",
    "latency": "latency",
}
BASELINES = ("masked_dense", "dense_best", "dense_compiled")
LENGTHS = (24, 128, 512)
BATCH, ROUNDS = 16, 12
# (batch, length, channels) of other archives' sets, in the paper's recipe: a tenth of the set.
RECIPE = ((5, 150, 1), (6, 24, 1), (3, 251, 1), (10, 1460, 1), (2, 80, 1), (16, 29, 12))
# Seconds of calls in a row before the next candidate's turn: training takes one step after the
# other. With one step a turn, in caches that another had filled, the sparse step took 5.3 ms, not
# 3.6, at L = 24, one thread, and 13.8, not 13.2, at L = 128.
TURN = 0.1
NEVER = 10**9

Call = Callable[[], object]
Ways = Mapping[str, Callable[[], Call]]  # by name: makers of calls that compute the same
Row = dict[str, Any]


def evolved(in_channels: int, **options: Any) -> DSN:
    """Build a network with random patterns, which are the limit of random growth."""
    return DSN(in_channels, 2, init="random", **options)


def tasks(
    thread_counts: Sequence[int],
    modes: Collection[str] = tuple(MODES),
    *,
    rounds: int = ROUNDS,
    baselines: Sequence[str] = BASELINES,
) -> list[tuple[str, Callable[[], list[Row]]]]:
    """Build a named task for each mode, length and number of threads.

    A ``"train"`` step consists of zero_grad, forward, loss, backward, Adam and masks. ``"update"``
    also prunes and grows; it is compared only with a ``"plain_step"`` without an update and with
    ``masked_dense``. ``"latency"`` is ``"inference"`` with one series. ``"blocks"`` steps run under
    autocast to bfloat16, with blocks of 16 and dense; they are also compared with a ``"float32"``
    step with single weights. A row omits what fails, and states the reasons under ``"absent"``.
    """

    def measure(
        mode: str, batch: int, length: int, channels: int, count: int, chosen: Sequence[str]
    ) -> list[Row]:
        with torch.random.fork_rng(devices=[]), threads(count):
            torch.manual_seed(0)
            options = {"nf": 48, "block": 16} if mode == "blocks" else {}
            model, X = evolved(channels, **options), torch.randn(batch, channels, length)
            row = _inference_row if mode in ("inference", "latency") else _training_row
            return [row(mode, model, X, rounds, chosen)]

    found: list[tuple[str, Callable[[], list[Row]]]] = []
    for mode, length, count in itertools.product(modes, LENGTHS, thread_counts):
        batch = 1 if mode == "latency" else BATCH
        chosen = [name for name in baselines if name == "masked_dense" or mode != "update"]
        call = partial(measure, mode, batch, length, 1, count, chosen)
        found.append((f"DSN {mode} L={length}, {threads_text(count)}", call))
    for shape in RECIPE if 1 in thread_counts and "train" in modes else ():
        call = partial(measure, "train", *shape, 1, ("masked_dense",))
        found.append((f"DSN train {shape}", call))
    return found


class TrainingStep:
    """A training step of a copy of ``model`` or of its dense twin; see ``tasks``.

    ``name``: ``"sparse"``, ``"masked_dense"`` (as published), ``"channels_last"`` (``images_of``)
    or ``"dense_compiled"``. ``casts``: autocast to bfloat16.
    """

    def __init__(
        self, model: DSN, name: str, update_every: int = NEVER, casts: bool = False
    ) -> None:
        self._casts = casts
        copies: dict[str, Callable[[Any], nn.Module]]
        copies = {"sparse": copy.deepcopy, "channels_last": images_of}
        self.model = copies.get(name, masked_copy)(model).train()
        # fused: Adam's fastest form for either side, and the one that train() uses.
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-4, fused=True)
        times: Any = {"update_every": update_every, "end_step": NEVER, "decay_steps": NEVER}
        scheduler = DSTScheduler if name == "sparse" else MaskedDST
        self.scheduler = scheduler(self.model, self.optimizer, **times)
        compiles = name == "dense_compiled"
        self._network = torch.compile(self.model, dynamic=False) if compiles else self.model

    def __call__(self, X: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = cast_loss(self._network, X, y, self._casts)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()

    def peak_bytes(self, X: Tensor, y: Tensor) -> int:
        """Return the peak number of bytes in use during a step.

        These are parameters, gradients, moments, masks (or indices and plans), and what torch
        allocates during the step. The scratch memory of the kernels (per thread, within L2) and of
        oneDNN is not counted.
        """
        self(X, y)  # makes gradients, moments and plans
        held = [*self.model.parameters(), *self.model.buffers()]
        held += [p.grad for p in self.model.parameters() if p.grad is not None]
        held += [t for state in self.optimizer.state.values() for t in state.values()]
        plans = 0
        for layer in self.model.sparse_layers() if isinstance(self.model, DSN) else ():
            held += layer.pattern.indices_where_stored()
            if extension is not None:
                plans += extension.plan_bytes(layer.crow_indices, layer.col_indices)
        known = sum(entry.nbytes for entry in held if isinstance(entry, Tensor))
        return known + plans + peak_bytes(partial(self, X, y))


def _training_row(mode: str, model: DSN, X: Tensor, rounds: int, baselines: Sequence[str]) -> Row:
    y = torch.arange(len(X)) % 2
    check_layers(model, len(X), X.shape[2])
    check_step(model, X, y)
    casts = mode == "blocks"
    if casts:
        check_cast_step(model, X, y)

    def step(name: str, update_every: int, model: DSN = model, casts: bool = casts) -> Call:
        call = partial(TrainingStep(model, name, update_every, casts), X, y)
        call()  # compiles
        return call

    every = 1 if mode == "update" else NEVER
    ways = {name: "channels_last" if name == "dense_best" else name for name in baselines}
    sides: dict[str, Ways] = {
        side: {way: partial(step, way, every)} for side, way in {"sparse": "sparse", **ways}.items()
    }
    if casts:
        single = evolved(X.shape[1], nf=48)
        sides["float32"] = {"float32": partial(step, "sparse", NEVER, single, False)}
    if mode == "update":  # interleaved with the step that it is compared with
        sides["plain_step"] = {"plain_step": partial(step, "sparse", NEVER)}
    row = _row(mode, X, sides, rounds)
    both = [name for name in ("sparse", "masked_dense") if name in row["ms"]]
    row["peak_bytes"] = {name: TrainingStep(model, name).peak_bytes(X, y) for name in both}
    return row


def _inference_row(mode: str, model: DSN, x: Tensor, rounds: int, baselines: Sequence[str]) -> Row:
    for _ in range(10):  # statistics as training leaves them
        model(torch.randn(max(len(x), 8), *x.shape[1:]))
    model.eval()
    check_layers(model, len(x), x.shape[2])
    exact = masked_copy(model).double()(x.double()).detach()
    freezing: Any = {"dynamic": False, "options": {"freezing": True}}
    networks: dict[str, dict[str, Callable[[], Network]]] = {
        "sparse": {"optimize_for_inference": lambda: optimize_for_inference(model)},
        "masked_dense": {"masked_dense": lambda: masked_copy(model).eval()},
        "dense_best": {  # which of the two is faster depends on the length and the machine
            "jit": lambda: scripted(masked_copy(model, MatrixPool).eval(), x),
            "channels_last jit": lambda: scripted(images_of(model, fold=True).eval(), x),
        },
        "dense_compiled": {
            "freezing": lambda: torch.compile(masked_copy(model).eval(), **freezing)
        },
    }

    def checked(make: Callable[[], Network]) -> Call:
        network = make()
        check_float32("the network's outputs are", network(x), exact)
        return partial(network, x)

    sides: dict[str, Ways] = {
        name: {way: partial(checked, make) for way, make in networks[name].items()}
        for name in ("sparse", *baselines)
    }
    with torch.inference_mode():
        return _row(mode, x, sides, rounds)


def check_float32(what: str, got: Tensor, exact: Tensor) -> None:
    """Compare a float32 result with float64, within torch's own tolerances for float32."""
    _check(what, got.double(), exact, rtol=1.3e-6, atol=1e-5)


def _check(what: str, got: Tensor, wanted: Tensor, **tolerances: Any) -> None:
    try:
        torch.testing.assert_close(got, wanted, **tolerances)
    except AssertionError as error:
        raise WrongResultError(f"{what} wrong: {error}") from None


def check_layers(model: nn.Module, batch: int, length: int) -> None:
    """Compare every sparse layer with float64; the model must keep the length of series."""
    for layer in model.modules():
        if isinstance(layer, SparseConv1d):
            check(layer_problem(layer, batch, length))


def check_step(model: nn.Module, X: Tensor, y: Tensor) -> None:
    """Compare a training step's output and gradients with the masked dense network's in float64.

    Tolerances are torch's defaults. Gradients are compared in float64, where rounding switches no
    ReLU; ``check_layers`` compares the kernels' gradients in float32.
    """
    dense = masked_copy(model).double().train()
    with torch.no_grad():
        got, exact = copy.deepcopy(model).train()(X), copy.deepcopy(dense)(X.double())
        check_float32("the network's outputs are", got, exact)
    results = []
    for network in (copy.deepcopy(model).double().train(), dense):
        x = X.double().requires_grad_()
        asked = {"the input": x, **dict(network.named_parameters())}
        found = torch.autograd.grad(F.nll_loss(network(x), y), list(asked.values()))
        results.append(zip(asked, found, strict=True))
    for (name, got), (other, wanted) in zip(*results, strict=True):
        if name != other:  # values, and the dense weight with its mask
            wanted = wanted[dense.get_submodule(other.removesuffix(".weight")).mask]
        _check(f"the gradient of {name} is", got, wanted)


def cast_loss(network: Network, X: Tensor, y: Tensor, casts: bool) -> Tensor:
    """Return the loss of a batch, under autocast to bfloat16 if ``casts``."""
    with torch.autocast("cpu", torch.bfloat16, enabled=casts):
        found = network(X)
    return F.nll_loss(found.to(torch.promote_types(found.dtype, torch.float32)), y)


def check_cast_step(
    model: nn.Module, X: Tensor, y: Tensor, make: Callable[[Any], Any] = copy.deepcopy
) -> None:
    """Check that bfloat16 gradients have at most twice the error of those from torch's modules.

    A rounding of all gradients together may be added to each. ``make`` returns the network that is
    checked, with the same parameters.
    """

    def gradients(network: nn.Module, X: Tensor, casts: bool) -> list[Tensor]:
        loss = cast_loss(network, X, y, casts)
        return [g.double() for g in torch.autograd.grad(loss, list(network.parameters()))]

    dense = masked_copy(model).train()
    exact = gradients(copy.deepcopy(model).double(), X.double(), False)
    sparse, torchs = gradients(make(model), X, True), gradients(dense, X, True)
    masks = [m.pattern.to_mask() for m in model.modules() if isinstance(m, SparseConv1d)]
    size = torch.stack([wanted.norm() for wanted in exact]).norm()
    rounding = torch.finfo(torch.bfloat16).eps * size
    for got, other, wanted in zip(sparse, torchs, exact, strict=True):
        other = other if other.shape == wanted.shape else other[masks.pop(0)]
        if not (got - wanted).norm() <= 2 * (other - wanted).norm() + rounding:
            raise WrongResultError("a bfloat16 gradient is too far from the float64 gradient")


def _row(mode: str, X: Tensor, sides: Mapping[str, Ways], rounds: int) -> Row:
    """Time the fastest call of each side; list failures under ``"absent"``."""
    torch.compiler.reset()  # or the eighth shape of a run is not compiled any more
    calls: dict[str, Call] = {}
    settings: dict[str, str] = {}
    absent: dict[str, str] = {}
    for name, ways in sides.items():
        right: dict[str, Call] = {}
        for way, make in ways.items():
            try:
                right[way] = make()
            except Exception as error:
                if name == "sparse":
                    raise
                absent[name if way == name else f"{name}, {way}"] = first_line(error)
        if right:
            way = _fastest(right)
            calls[name] = right[way]
            settings |= {name: way} if way != name else {}
    times = timing.interleave(calls, rounds=rounds, least_seconds=TURN)
    return {
        "model": "DSN",
        "mode": mode,
        "length": X.shape[2],
        "batch": X.shape[0],
        "in_channels": X.shape[1],
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        **times_and_ratios(times),
        "absent": absent,
        "settings": settings,
    }


def _fastest(calls: Mapping[str, Call]) -> str:
    if len(calls) == 1:
        return next(iter(calls))
    times = timing.interleave(calls, rounds=5, least_seconds=TURN)
    return min(times, key=lambda name: float(np.median(times[name])))
