"""The dense networks: their published numbers of parameters, and what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sparseconv as sc
from sparseconv.models import LITE, OSCNN, Ensemble, InceptionTime, ResNet
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

SMALL: dict[str, Callable[..., nn.Module]] = {
    "resnet": lambda c, k: ResNet(c, k, nf=4),
    "keras": lambda c, k: InceptionTime(c, k, nf=4),
    "tsai": lambda c, k: InceptionTime(c, k, nf=4, variant="tsai"),
    "lite": lambda c, k: LITE(c, k, nf=4),
    "os-cnn": lambda c, k: OSCNN(c, k, n_timepoints=24),
    "no shortcut at the end": lambda c, k: InceptionTime(c, k, nf=4, depth=4),
    "ensemble": lambda c, k: Ensemble(LITE(c, k, nf=4) for _ in range(2)),
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_as_many_parameters_as_published() -> None:
    # Means over UCR 85, whose sets have 7.7 classes in the mean: one more class is 129 parameters.
    for model, published in ((ResNet, 479_200), (InceptionTime, 389_340)):
        options: dict[str, Any] = {} if model is ResNet else {"variant": "tsai"}
        counts = [parameters(model(1, classes, **options)) for classes in (7, 8)]
        assert counts[0] < published < counts[1] == counts[0] + 129
    assert parameters(InceptionTime(1, 5)) == 420_192 + 129 * 5
    assert parameters(LITE(1, 5)) == 9_814 + 33 * 5


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(name: str, channels: int) -> None:
    model = SMALL[name](channels, 5).eval()
    for length in (1, 2, 60):
        log_proba = model(torch.randn(2, channels, length))
        assert log_proba.shape == (2, 5)
        torch.testing.assert_close(log_proba.exp().sum(1), torch.ones(2))


@pytest.mark.parametrize("name", SMALL)
def test_trained_pruned_converted_and_folded(name: str) -> None:
    torch.manual_seed(0)
    X, y = torch.randn(20, 1, 30), torch.arange(20) % 2
    X[y == 1] += torch.sin(torch.arange(30.0))
    model = SMALL[name](1, 2)
    result = train(model, X, y, Recipe(epochs=8), verbose=False)
    assert result.best_loss < result.history[0]["train_loss"]
    fast = sc.optimize_for_inference(model)
    with torch.no_grad():
        torch.testing.assert_close(fast(X), model(X), rtol=1e-4, atol=1e-4)
    for module in model.modules():
        if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
            prune.l1_unstructured(module, "weight", 0.85)
    sparse = sc.convert(model).model
    assert sparse_layers(sparse)
    with torch.no_grad():
        torch.testing.assert_close(sparse(X), model(X), rtol=1e-4, atol=1e-4)
    density = sum(x.pattern.nnz for x in sparse_layers(sparse)) / sum(
        x.pattern.numel for x in sparse_layers(sparse)
    )
    result = train(sparse, X, y, Recipe(epochs=2, update_every_epochs=1), verbose=False)
    assert result.itop_rate is not None
    assert result.itop_rate > density, "trained dynamically sparse"


def sparse_layers(model: nn.Module) -> list[sc.SparseConv1d]:
    return [module for module in model.modules() if isinstance(module, sc.SparseConv1d)]


def test_torch_fx_follows_a_network() -> None:
    model, x = ResNet(1, 2).eval(), torch.randn(2, 1, 30)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_inception_is_what_its_parts_compute() -> None:
    torch.manual_seed(0)
    block = InceptionTime(3, 2, nf=2, depth=1).double().eval().blocks[0][0]
    x = torch.randn(2, 3, 50, dtype=torch.float64)
    (bottleneck, convs), pooled_conv = block[0][0], block[0][1][1]
    z = nn.functional.conv1d(x, bottleneck.weight)
    parts = []
    for conv, taps in zip(convs, (40, 20, 10), strict=True):
        padded = nn.functional.pad(z, ((taps - 1) // 2, taps // 2))  # as Keras pads "same"
        parts.append(nn.functional.conv1d(padded, conv.weight))
    pooled = nn.functional.pad(x, (1, 1), value=-torch.inf).unfold(2, 3, 1).amax(-1)
    parts.append(nn.functional.conv1d(pooled, pooled_conv.weight))
    wanted = torch.relu(torch.cat(parts, 1) / (1 + block[1].eps) ** 0.5)
    torch.testing.assert_close(block(x), wanted)


def test_hand_made_filters_see_what_they_are_made_for() -> None:
    hand_made = LITE(2, 3).double().eval().blocks[0][-1]
    x = torch.zeros(1, 2, 200, dtype=torch.float64)
    x[0, :, 100:] = 1.0  # a step up
    y = hand_made(x)[0]
    assert y.shape == (17, 200)
    rising, falling = y[:6], y[6:12]
    assert (rising[:, 90:110].amax(1) == 2).all(), "both channels count"
    assert (falling[:, :150].amax(1) == 0).all(), "the end of the series is not a fall of it"
    steady = hand_made(torch.ones(1, 2, 300, dtype=torch.float64))[0, :, 100:200]
    torch.testing.assert_close(steady, torch.zeros_like(steady), atol=1e-9, rtol=0)
    x = torch.zeros(1, 2, 300, dtype=torch.float64)
    x[0, :, 150] = 1.0
    seen = hand_made(x)[0, 12:]
    torch.testing.assert_close(seen.amax(1), torch.full((5,), 4.0).double())  # 2 in each channel
    assert not hand_made.state_dict()
    assert not list(hand_made.parameters()), "frozen"


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    torch.manual_seed(0)
    members = [LITE(1, 3, nf=4), InceptionTime(1, 3, nf=4), ResNet(1, 3, nf=4)]
    x = torch.randn(5, 1, 40)
    model = Ensemble(members).eval()
    wanted = sum(member(x).exp() for member in members) / 3
    torch.testing.assert_close(model(x).exp(), wanted)
    assert all(member is found for member, found in zip(members, model.members, strict=True))
    assert Ensemble(members[:1])(x).equal(members[0](x))
