"""The dense networks compute what their published implementations do, for equal weights.

tsai and aeon's networks (TensorFlow) are no dependencies: where they are missing, these tests are
skipped. In an environment with torch:

    pip install tsai tensorflow-cpu aeon
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparseconv.models import LITE, OSCNN, InceptionTime, ResNet

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def tsai(name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"tsai.models.{name}"), name)
    except ImportError as error:
        pytest.skip(f"tsai cannot be imported: {error}")


def layers(model: nn.Module, kind: type[nn.Module], *, shortcuts_last: bool = False) -> list[Any]:
    """Modules of a kind in the order of the network, those of shortcuts after all others."""
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, kind)]
    if shortcuts_last:
        found.sort(key=lambda pair: "shortcut" in pair[0])
    return [module for _, module in found]


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.double().eval()


@torch.no_grad()
def copy_weights(theirs: nn.Module, ours: nn.Module) -> None:
    for kind in (nn.Conv1d, nn.Linear):
        pairs = (layers(model, kind, shortcuts_last=True) for model in (theirs, ours))
        for a, b in zip(*pairs, strict=True):
            for name, parameter in a.named_parameters():
                getattr(b, name).copy_(parameter)
    # OS-CNN has one BatchNorm for all lengths side by side, theirs one for each.
    rest = iter(layers(theirs, nn.BatchNorm1d, shortcuts_last=True))
    for b in layers(ours, nn.BatchNorm1d, shortcuts_last=True):
        parts = list(until(rest, b.num_features))
        for name in STATISTICS:
            getattr(b, name).copy_(torch.cat([getattr(part, name) for part in parts]))
    assert next(rest, None) is None


def until(norms: Iterator[Any], features: int) -> Iterator[Any]:
    while features > 0:
        norm = next(norms)
        features -= norm.num_features
        yield norm


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("ResNet", lambda c: ResNet(c, 5)),
        ("InceptionTime", lambda c: InceptionTime(c, 5, variant="tsai")),
        ("OmniScaleCNN", lambda c: OSCNN(c, 5, n_timepoints=120)),
    ],
)
def test_tsai(name: str, ours: Callable[[int], nn.Module], channels: int) -> None:
    torch.manual_seed(0)
    length = (120,) if name == "OmniScaleCNN" else ()
    published = randomised(tsai(name)(channels, 5, *length))
    model = ours(channels).double().eval()
    sizes = [sum(p.numel() for p in network.parameters()) for network in (published, model)]
    assert sizes[0] == sizes[1]
    copy_weights(published, model)
    x = torch.randn(4, channels, 120, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), published(x).log_softmax(1), rtol=1e-9, atol=1e-9)


def keras_model(network: str, channels: int) -> Any:
    keras = pytest.importorskip("tensorflow").keras
    network = getattr(pytest.importorskip("aeon.networks"), network)()
    inputs, features = network.build_network((90, channels))
    model = keras.models.Model(inputs, keras.layers.Dense(5)(features))
    generator = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(generator.normal(size=weight.shape) * 0.1)
    for weight in model.non_trainable_weights:
        if "moving_variance" in weight.path:
            weight.assign(generator.uniform(0.5, 2, size=weight.shape))
    return model


def keras_layers(model: Any, kind: str) -> list[Any]:
    """Layers of a kind in the order in which they were made, which their names count."""
    found = [layer for layer in model.layers if type(layer).__name__ == kind]
    return sorted(found, key=lambda layer: number_in(layer.name))


def number_in(name: str) -> int:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def as_conv(kernel: Any) -> Tensor:
    return torch.tensor(np.asarray(kernel)).permute(2, 1, 0)  # taps, in, out -> out, in, taps


@torch.no_grad()
def copy_norms(theirs: Any, ours: nn.Module) -> None:
    norms = layers(ours, nn.BatchNorm1d)
    keras_norms = keras_layers(theirs, "BatchNormalization")
    for a, b in zip(keras_norms, norms, strict=True):
        for name, value in zip(STATISTICS, a.get_weights(), strict=True):
            getattr(b, name).copy_(torch.tensor(value))
        b.eps = a.epsilon
    (dense,) = keras_layers(theirs, "Dense")
    (linear,) = layers(ours, nn.Linear)
    linear.weight.copy_(torch.tensor(dense.get_weights()[0].T))
    linear.bias.copy_(torch.tensor(dense.get_weights()[1]))


@pytest.mark.parametrize("channels", [1, 3])
def test_aeons_lite(channels: int) -> None:
    published = keras_model("LITENetwork", channels)
    model = LITE(channels, 5).eval()
    convs = [(layer.trainable, layer.get_weights()[0]) for layer in published.layers
             if type(layer).__name__ == "Conv1D"]  # fmt: skip
    frozen = [kernel for trainable, kernel in convs if not trainable]
    for filter, kernel in zip(model.hand_made.buffers(), frozen, strict=True):
        torch.testing.assert_close(filter, as_conv(kernel))
    separable = [
        part for layer in keras_layers(published, "SeparableConv1D") for part in layer.get_weights()
    ]
    wanted = [kernel for trainable, kernel in convs if trainable]
    wanted += [w if i % 2 else w.transpose(0, 2, 1) for i, w in enumerate(separable)]
    with torch.no_grad():
        for conv, kernel in zip(layers(model, nn.Conv1d), wanted, strict=True):
            conv.weight.copy_(as_conv(kernel))
    copy_norms(published, model)
    compare(published, model, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_aeons_inception_time(channels: int) -> None:
    published = keras_model("InceptionNetwork", channels)
    model = InceptionTime(channels, 5).eval()
    kernels = [layer.get_weights()[0] for layer in keras_layers(published, "Conv1D")]
    with torch.no_grad():
        for conv, kernel in zip(layers(model, nn.Conv1d), kernels, strict=True):
            conv.weight.copy_(as_conv(kernel))
    copy_norms(published, model)
    compare(published, model, channels)


def compare(published: Any, model: nn.Module, channels: int) -> None:
    x = np.random.default_rng(1).normal(size=(4, 90, channels)).astype(np.float32)
    with torch.no_grad():
        got = model(torch.tensor(x).transpose(1, 2))
    wanted = torch.tensor(published.predict(x, verbose=0)).log_softmax(1)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
