"""optimize_for_inference: right within a computed bound, and a module like any other."""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter, OrderedDict
from typing import Any, cast

import pytest
import torch
from engines import ISAS
from layers import Function
from model_state import everything
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import sparseconv as sc
from sparseconv import SparseConv1d
from sparseconv.models import DSN, InceptionTime
from sparseconv.testing import error_bound

MODES = ("zeros", "replicate", "reflect", "circular")
HALF = (torch.bfloat16, torch.float16)


def random_net(rng: random.Random, dtype: torch.dtype) -> list[nn.Module]:
    channels, layers = rng.randint(1, 4), []
    for _ in range(rng.randint(1, 3)):
        out, kernel, stride, dilation = (
            rng.choice(of) for of in (range(2, 20, 2), (1, 3, 5, 9), (1, 1, 2), (1, 2))
        )
        dense = rng.random() < 0.3
        options: dict[str, Any] = {
            "stride": stride, "dilation": dilation, "dtype": dtype,
            "padding": rng.choice((0, kernel // 2)) if dense else (rng.randint(0, 2), kernel // 2),
            "groups": rng.choice((1, 1, 2)) if channels % 2 == 0 else 1,
            "bias": rng.random() < 0.5, "padding_mode": rng.choice(MODES),
        }  # fmt: skip
        if not dense:
            options["density"] = rng.choice((0, 0.2, 1))
        layers.append((nn.Conv1d if dense else SparseConv1d)(channels, out, kernel, **options))
        if rng.random() < 0.8:
            eps = rng.choice((1e-5, 1e-3, 1.0))
            layers.append(nn.BatchNorm1d(out, eps, affine=rng.random() < 0.5, dtype=dtype))
        if rng.random() < 0.8:
            layers.append(nn.ReLU(inplace=rng.random() < 0.5))
        channels = out
    return layers


def settled(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and weights as training leaves them."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d) and norm.running_var is not None:
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.1, 3)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return model.eval()


def norms(model: nn.Module, x: Tensor) -> int:
    """How many norms run on their own in a call."""
    model(x)  # compiling calls them, too
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        model(x)
    ran = Counter(event.name for event in profiler.events())
    return ran["aten::batch_norm"] + ran["sparseconv::lanes_norm"]


def check(model: nn.Module, x: Tensor) -> nn.Module:
    """Compare the copy with the model in float64, by the error that the model itself has."""
    before = everything(model)
    fast = sc.optimize_for_inference(model)
    assert everything(model) == before
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        own = (copy.deepcopy(model).float()(x.float()).double() - exact).abs().max()
        ratio = torch.finfo(x.dtype).eps / torch.finfo(torch.float32).eps
        terms = torch.tensor(x[0].numel())
        bound = 4 * own * ratio + error_bound(x, exact.abs().max(), terms, x.dtype)
        assert (fast(x).double() - exact).abs().max() <= bound
    return fast


@pytest.mark.promise("P1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_networks(dtype: torch.dtype, count_cases: Any) -> None:
    norms_of_models, seeds = 0, range(int(dtype == torch.float64), 10, 2)
    for seed in seeds:
        torch.manual_seed(seed)
        layers = random_net(random.Random(seed), dtype)
        model = settled(nn.Sequential(*layers))
        x = torch.randn(9, layers[0].in_channels, 70, dtype=dtype)
        fast = check(model, x)
        norms_of_models += norms(model, x)
        assert norms(fast, x) == 0
    count_cases(len(seeds))
    assert norms_of_models > 2  # or nothing was folded


@pytest.mark.promise("P7")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_relu_has_the_bits_of_relu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-40])
    for length in (1, 5, 16, 33, 200):
        layer = SparseConv1d(3, 20, 5, padding=2, density=0.5, dtype=dtype)
        x = torch.randn(5, 3, length, dtype=dtype)
        x[0, 0, :5] = special[:length].to(dtype)
        arguments = (layer.values, layer.pattern, layer.bias)
        for isa in ISAS:
            monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
            plain = sc.sparse_conv1d(x, *arguments, padding=2)
            fused = sc.sparse_conv1d(x, *arguments, padding=2, relu=True)
            torch.testing.assert_close(fused, plain.relu(), rtol=0, atol=0, equal_nan=True)
            assert plain.isnan().any()
            assert torch.equal(fused.isnan(), plain.isnan())


def skips() -> nn.Module:
    layers = SparseConv1d(6, 6, 5, padding=2), nn.BatchNorm1d(6)
    return Function(lambda x, conv, norm: x + norm(conv(x)).relu(), *layers)


NETWORKS = {
    "DSN": (lambda: DSN(2, 3, nf=7, kernel_size=9, depth=3), 1),  # in the head, after pooling
    "own forward": (lambda: nn.Sequential(*(skips() for _ in range(3))), 0),
    "dense": (lambda: InceptionTime(2, 3, nf=2, depth=1), 1),  # after a concatenation
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    make, left = NETWORKS[name]
    torch.manual_seed(0)
    model = settled(make())
    channels = 6 if name == "own forward" else 2
    x = torch.randn(4, channels, 40)
    assert norms(check(model, x), x) == left


def test_a_module_like_any_other() -> None:
    torch.manual_seed(0)
    model, x = settled(DSN(2, 3, nf=4, kernel_size=9, depth=2)), torch.randn(2, 2, 30)
    fast = sc.optimize_for_inference(model)
    y = fast(x)
    assert not y.requires_grad
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), fast.blocks):
        assert not other.training
        assert not any(p.requires_grad for p in other.parameters())
    for kind in (model.blocks[0], model.blocks[0][-3]):  # these have a __getstate__
        twin = copy.deepcopy(sc.optimize_for_inference(kind))
        series = x if kind is model.blocks[0] else torch.randn(2, 4, 30)
        before = twin(series)
        twin.load_state_dict(
            {k: 2 * v if v.is_floating_point() else v for k, v in kind.state_dict().items()}
        )
        assert not torch.allclose(twin(series), before)
    assert fast.state_dict().keys() == model.state_dict().keys()
    other = sc.optimize_for_inference(settled(DSN(2, 3, nf=4, kernel_size=9, depth=2)))
    assert not torch.allclose(other(x), y)
    other.load_state_dict(model.state_dict())  # what was folded follows
    torch.testing.assert_close(other(x), y, rtol=0, atol=0)
    x.requires_grad_()  # saliency maps
    (wanted,) = torch.autograd.grad(model(x).sum(), x)
    (found,) = torch.autograd.grad(fast(x).sum(), x)
    torch.testing.assert_close(found, wanted)


def test_what_is_followed() -> None:
    """Guards are left out for attributes alone: arguments, modes and patterns are still seen."""

    class Net(nn.Sequential):
        def forward(self, x: Tensor, twice: bool = False) -> Tensor:
            y = cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
            return 2 * y if twice else y

    torch.manual_seed(0)
    model = settled(Net(sc.SparseConv1d(2, 8, 5, padding=2, density=0.3), nn.BatchNorm1d(8)))
    fast, x = sc.optimize_for_inference(model), torch.randn(4, 2, 20)

    def check_equal(**options: Any) -> None:
        torch.testing.assert_close(fast(x, **options), model(x, **options))

    check_equal()
    check_equal(twice=True)
    for nnz in (24, 30, 30):  # 24: as before
        pattern, values = sc.KernelCSR.random((8, 2, 5), nnz), torch.randn(nnz)
        for network in (model, fast):
            network[0].set_pattern(pattern, values)
        check_equal()
    for network in (model, fast):
        network.train()
    check_equal()


@pytest.mark.parametrize("name", ["scale", "it's", 'a"b', 'it\'s "b"'])
def test_attributes_of_own_modules_are_followed(name: str) -> None:
    class Scale(nn.Module):
        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    layers = OrderedDict([("conv", sc.SparseConv1d(2, 8, 5)), (name, Scale())])
    fast, x = sc.optimize_for_inference(nn.Sequential(layers)), torch.randn(4, 2, 20)
    once = fast(x)
    fast._modules[name].factor = 2.0  # type: ignore[union-attr, assignment]
    torch.testing.assert_close(fast(x), 2 * once)


class Streams(nn.Module):
    """Counts its calls, and keeps the end of a series in a buffer."""

    kept: Tensor

    def __init__(self, scale: float, breaks: bool) -> None:
        super().__init__()
        self.conv, self.scale, self.breaks, self.calls = SparseConv1d(2, 2, 3), scale, breaks, 0
        self.register_buffer("kept", torch.zeros(4, 2, 0))

    def forward(self, x: Tensor) -> Tensor:
        x, self.calls = torch.cat((self.kept, x), 2), self.calls + 1
        self.kept = x[:, :, -2:]
        if self.breaks:
            torch._dynamo.graph_break()
        return cast(Tensor, self.conv(x)) * self.scale * self.calls


@pytest.mark.parametrize("breaks", [False, True])
def test_modules_that_keep_a_state_or_share_a_frame(breaks: bool) -> None:
    """After a graph break, torch compiles one frame for all modules of a class."""
    for _ in range(2):
        model = nn.Sequential(*(Streams(scale, breaks) for scale in (2.0, 3.0)))
        fast = sc.optimize_for_inference(model)
        for _ in range(3):
            x = torch.randn(4, 2, 20)
            torch.testing.assert_close(fast(x), model(x))
