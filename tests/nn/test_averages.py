"""Running averages of the weights (EMA, SWA).

They follow the pattern where DSTScheduler knows of them; elsewhere they refuse to compute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from dst_runs import batches, in_blocks, sparse_layers, train_step, two_layers
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)

from benchmarks.bench.masked import PremaskedConv1d
from sparseconv import DSTScheduler, KernelCSR, SparseConv1d, optimize_for_inference

AVERAGES: dict[str, dict[str, Any]] = {
    "default": {},
    "EMA": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "EMA one by one": {"avg_fn": get_ema_avg_fn(0.99)},
    "SWA": {"multi_avg_fn": get_swa_multi_avg_fn()},
    "SWA one by one": {"avg_fn": get_swa_avg_fn()},
}
# torch's foreach SWA cannot average integers, of a BatchNorm for one.
each_average = pytest.mark.parametrize(
    ("name", "use_buffers"),
    [(name, use) for name in AVERAGES for use in (False, True) if (name, use) != ("SWA", True)],
)


@pytest.mark.tool("AveragedModel (EMA, SWA)", "works", "DSTScheduler(averages=[...]) moves it")
@pytest.mark.tool(
    "EMA by a loop over state_dict()", "works", "DSTScheduler(averages=[...]) moves it"
)
@each_average
@pytest.mark.parametrize(("grow", "make"), [("random", two_layers), ("gradient", in_blocks)])
def test_the_average_follows_the_pattern(
    name: str, use_buffers: bool, grow: str, make: Callable[..., nn.Sequential]
) -> None:
    """Compared with a masked dense run whose average is cleared where the mask changes."""
    model = make(torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    average = AveragedModel(model, use_buffers=use_buffers, **AVERAGES[name])
    loop = copy.deepcopy(model)  # an EMA as other libraries make it, with a decay of 0.9
    both = nn.ModuleDict({"online": model, "ema": copy.deepcopy(model)})  # as ema_pytorch's does
    settings: dict[str, Any] = {"grow": grow, "averages": [average, loop, both]}
    dst = DSTScheduler(model, optimizer, update_every=3, end_step=99, **settings)
    masked = nn.Sequential(*map(PremaskedConv1d, sparse_layers(model)))
    dense = AveragedModel(masked, **AVERAGES[name])
    data = batches(torch.float64)
    for decay in (0.0, *13 * [0.9]):
        train_step(model, optimizer, next(data))
        if dst.step():
            for layer, twin in zip(sparse_layers(model), dense.module, strict=True):
                fresh = ~layer.pattern.to_mask() | (layer.dense_weight().detach() == 0)
                twin.weight.data[fresh] = 0
        for layer, twin in zip(sparse_layers(model), masked, strict=True):
            twin.weight.data.copy_(layer.dense_weight())
            twin.bias.data.copy_(layer.bias)
        average.update_parameters(model)
        dense.update_parameters(masked)
        states = loop.state_dict().values(), model.state_dict().values()
        for ema, new in zip(*states, strict=True):
            ema.copy_(decay * ema + (1 - decay) * new if ema.is_floating_point() else new)
        x = next(data)
        averaged = sparse_layers(average)
        assert [m.pattern for m in sparse_layers(both["ema"])] == [m.pattern for m in averaged]
        for layer, own, twin in zip(averaged, sparse_layers(model), dense.module, strict=True):
            assert layer.pattern == own.pattern
            torch.testing.assert_close(layer.dense_weight(), twin.weight, rtol=1e-12, atol=1e-15)
        first, second = dense.module
        torch.testing.assert_close(average(x), second(first(x).tanh()))
        if name == "EMA":
            torch.testing.assert_close(loop(x), average(x))
    assert dst.updates == 4


@pytest.mark.tool(
    "AveragedModel that DSTScheduler does not know",
    "refuses",
    "once the pattern has changed: RuntimeError at its next use",
)
@each_average
def test_an_average_over_two_patterns_refuses_to_compute(name: str, use_buffers: bool) -> None:
    layer = SparseConv1d(4, 6, 5)
    average = AveragedModel(layer, use_buffers=use_buffers, **AVERAGES[name])
    x = torch.randn(2, 4, 9)
    for _ in range(3):
        average.update_parameters(layer)
    torch.testing.assert_close(average(x), layer(x))  # one pattern: an average like any other
    average.load_state_dict(average.state_dict())
    called = torch.func.functional_call(average, average.state_dict(), (x,))
    torch.testing.assert_close(called, average(x))
    before = copy.deepcopy(average)
    other = SparseConv1d(4, 6, 5)
    layer.set_pattern(other.pattern)
    average.update_parameters(layer)
    uses = (
        average,
        lambda _: copy.deepcopy(average),
        lambda _: average.double(),
        lambda _: average.to("meta"),
        lambda _: average.state_dict(),
        lambda _: average.module.dense_weight(),
        lambda _: average.module.to_dense(),
        lambda _: average.module.set_pattern(KernelCSR.full((6, 4, 5))),
        lambda _: optimize_for_inference(average)(x),
        lambda _: optimize_for_inference(nn.Sequential(average.module, nn.ReLU()))(x),
    )
    for use in uses if name == "EMA" else uses[:1]:
        with pytest.raises(RuntimeError, match=r"overwritten.*DSTScheduler\(averages="):
            use(x)
    torch.testing.assert_close(before(x), before.module.to_dense()(x))  # a copy of before continues
    average.module.load_state_dict(layer.state_dict())  # and it can be repaired
    assert average(x).equal(layer(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "sparseconv"])
def test_a_compiled_layer_notices_another_pattern(backend: str) -> None:
    layer, other, x = SparseConv1d(4, 6, 5), SparseConv1d(4, 6, 5), torch.randn(2, 4, 9)
    compiled = torch.compile(layer, backend=backend)
    compiled(x)
    buffers = layer.crow_indices, layer.col_indices
    own = [buffer.clone() for buffer in buffers]
    # Of another pattern; or of the same one, where an average lowers some of them.
    for i, wrong in ((1, other.col_indices), (0, own[0] * 0.9 + own[0] * 0.1), (1, own[1] - 1)):
        buffers[i].copy_(wrong)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="overwritten"):
                compiled(x)
        buffers[i].copy_(own[i])
        compiled(x)


def test_every_other_pattern_is_noticed(count_cases: Any) -> None:
    """Copies and means of indices, with the least share of the other that an EMA gives it."""
    generator = torch.Generator().manual_seed(0)
    shape, n = (6, 4, 5), 50
    layers = [
        SparseConv1d(4, 6, 5, pattern=KernelCSR.random(shape, 24, generator=generator))
        for _ in range(n)
    ]
    for layer, other in pairwise(layers):
        pattern = layer.pattern
        pairs = list(zip(layer.buffers(), other.pattern.on(torch.device("cpu")), strict=True))
        kept = [own.clone() for own, _ in pairs]
        for decay in (0.0, 0.5, 0.999, 0.9999999):
            for (own, _), old in zip(pairs, kept, strict=True):
                own.copy_(old * decay + old * (1 - decay))
            assert layer.pattern is pattern
            for (own, foreign), old in zip(pairs, kept, strict=True):
                own.copy_(old * decay + foreign * (1 - decay))
            with pytest.raises(RuntimeError, match="overwritten"):
                layer.pattern  # noqa: B018
            for (own, _), old in zip(pairs, kept, strict=True):
                own.copy_(old)
    count_cases(4 * (n - 1))
