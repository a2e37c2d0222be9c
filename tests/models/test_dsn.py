"""The Dynamic Sparse Network is the paper's: structure, masks, cost, to the digit."""

from __future__ import annotations

import copy
import pickle
from decimal import Decimal

import pytest
import torch
import torch.nn.functional as F
from tiny import same
from torch import Tensor

from sparseconv import KernelCSR, Region
from sparseconv.models import DSN
from sparseconv.models.dsn import PADDINGS

# The paper's table: (channels, length, classes), then Params in thousands and FLOPs in millions
# at S = 0, 50, 80 and 90 %.
PAPER = {
    "HAR": ((9, 128, 6), "1056.10 366.89 160.13 91.21", "267.57 93.01 40.64 23.18"),
    "EEG2": ((64, 256, 2), "1058.11 368.90 162.14 93.22", "536.17 187.05 82.31 46.64"),
    "Daily Sport": ((45, 125, 19), "1059.65 370.44 163.68 94.76", "262.10 91.63 40.48 23.44"),
}
SPARSITIES = (0.0, 0.5, 0.8, 0.9)
CELLS = [
    (name, sparsity, params, flops)
    for name, (_, all_params, all_flops) in PAPER.items()
    for sparsity, params, flops in zip(
        SPARSITIES, all_params.split(), all_flops.split(), strict=True
    )
]
# The one printed cell that the paper's own way of counting, right for the 11 others, does not give.
MISPRINTED_FLOPS = ("EEG2", 0.9)


def prints_as(count: float, printed: str, unit: int) -> bool:
    """Whether a count, in ``unit``, rounds to the printed digits (a tie may go either way)."""
    half_a_digit = Decimal("0.005")
    return abs(Decimal(count) / unit - Decimal(printed)) <= half_a_digit


@pytest.mark.parametrize(("name", "sparsity", "params", "flops"), CELLS)
def test_cost_is_the_papers_table(name: str, sparsity: float, params: str, flops: str) -> None:
    (channels, length, classes), _, _ = PAPER[name]
    model = DSN(channels, classes, sparsity=sparsity)
    cost = model.cost(length)
    assert prints_as(cost.params, params, 1_000)
    if name == "HAR":
        millions = {0.0: "134.97", 0.5: "46.75", 0.8: "20.28", 0.9: "11.46"}[sparsity]
        assert prints_as(cost.macs_executed, millions, 1_000_000)
    printed = "47.40" if (name, sparsity) == MISPRINTED_FLOPS else flops
    assert prints_as(cost.flops_paper, printed, 1_000_000)
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())

    dense = DSN(channels, classes, sparsity=0.0).cost(length)
    assert cost.params_dense == dense.params
    assert cost.flops_paper_dense == dense.flops_paper
    assert cost.macs_dense == dense.macs_executed


def test_groups_of_the_paper() -> None:
    layers = DSN(1, 2).sparse_layers()
    assert [layer.pattern.shape for layer in layers] == [(141, 1, 39)] + 3 * [(141, 47, 39)]
    for layer, expected in ((layers[0], (122, 244, 366)), (layers[1], (5743, 11486, 17230))):
        assert layer.regions == (
            Region((0, 47), (0, 13)),
            Region((47, 94), (0, 26)),
            Region((94, 141), (0, 39)),
        )
        groups = layer.pattern.to_mask().chunk(3)
        assert tuple(int(group.sum()) for group in groups) == expected
    per_kernel = [group.sum().item() / (47 * 47) for group in groups]
    assert [round(taps, 1) for taps in per_kernel] == [2.6, 5.2, 7.8]


@pytest.mark.parametrize("init", ["prefix", "random"])
@pytest.mark.parametrize(
    ("in_channels", "nf", "kernel_size", "n_groups", "sparsity"),
    [
        (1, 4, 9, 3, 0.8),
        (3, 4, 10, 3, 0.5),
        (2, 5, 7, 1, 0.9),
        (2, 12, 8, 4, 0.3),
        (1, 1, 6, 3, 0.99),
        (1, 4, 11, 3, 0.1),
    ],
)
def test_first_pattern(
    in_channels: int, nf: int, kernel_size: int, n_groups: int, sparsity: float, init: str
) -> None:
    options = {"nf": nf, "kernel_size": kernel_size, "n_groups": n_groups, "sparsity": sparsity}
    model = DSN(in_channels, 2, **options, init=init, depth=2)
    for layer in model.sparse_layers():
        mask = layer.pattern.to_mask()
        chunks = mask.chunk(n_groups)
        assert len(chunks) == n_groups == len(layer.regions)
        for i, group in enumerate(chunks, start=1):
            taps = int(kernel_size / n_groups) * i
            nnz = int(group[:, :, :taps].numel() * (1 - sparsity) + 1e-9)
            assert group.sum() == nnz
            assert layer.regions[i - 1].taps == (0, taps)
            assert not group[:, :, taps:].any()
            if init == "prefix":  # tap-major order (tap, out, in): the first nnz are active
                order = group.permute(2, 0, 1).flatten()
                assert order[:nnz].all()


def test_a_dense_network_a_network_without_groups_and_an_exact_count() -> None:
    for layer in DSN(3, 2, nf=4, sparsity=0.0).sparse_layers():
        assert layer.pattern == KernelCSR.full(layer.pattern.shape)
        assert layer.regions == (Region((0, 12), (0, 39)),)
    layer = DSN(3, 2, n_groups=1).sparse_layers()[0]
    assert layer.regions == (Region((0, 141), (0, 39)),)
    assert layer.pattern.nnz == int(141 * 47 * 39 * 0.2)
    # 50 * 50 * 13 weights times 0.2 are 6 500; 1 - 0.8 in floating point would make it 6 499.
    layer = DSN(3, 2, nf=50, sparsity=0.8).sparse_layers()[0]
    assert layer.pattern.to_mask()[:50].sum() == 6500


def test_random_init_is_uniform_in_the_region() -> None:
    torch.manual_seed(0)
    options = {"nf": 2, "kernel_size": 6, "depth": 1, "sparsity": 0.5, "init": "random"}
    layers = [DSN(1, 2, **options).sparse_layers()[0] for _ in range(400)]
    share = torch.stack([layer.pattern.to_mask() for layer in layers]).double().mean(0)
    for i, group in enumerate(share.chunk(3), start=1):
        inside = group[:, :, : 2 * i]
        # A share of 400 draws with probability 1/2 stays within 5 standard deviations.
        assert ((inside - 0.5).abs() < 5 * 0.5 / 400**0.5).all()


def expected_output(model: DSN, x: Tensor, padding: str, kernel_size: int) -> Tensor:
    """The network of the paper, spelt out with dense operations."""
    weights = dict(model.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.batch_norm(x, None, None, scale, shift, training=True)

    for index, layer in enumerate(model.sparse_layers()):
        if x.shape[1] > 1:
            x = F.conv1d(x, weights[f"blocks.{index}.bottleneck.weight"])
        if padding == "right-replicate":
            x = torch.cat([x, x[:, :, -1:].expand(-1, -1, kernel_size - 1)], 2)
        else:
            mode = {"centred-zeros": "constant", "centred-replicate": "replicate"}[padding]
            x = F.pad(x, ((kernel_size - 1) // 2, kernel_size // 2), mode)
        x = norm(F.conv1d(x, layer.dense_weight()), f"blocks.{index}.norm").relu()
    x = F.conv1d(F.adaptive_avg_pool1d(x, 50), weights["head.1.weight"])
    return F.log_softmax(norm(x, "head.2").mean(2), 1)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(
    ("length", "kernel_size"), [(1, 9), (7, 9), (24, 8), (50, 9), (113, 39), (257, 9)]
)
def test_forward_and_backward(
    padding: str, in_channels: int, length: int, kernel_size: int
) -> None:
    torch.manual_seed(length)
    model = DSN(in_channels, 4, nf=5, kernel_size=kernel_size, padding=padding).double()
    x = torch.randn(3, in_channels, length, dtype=torch.float64)
    gradients = []
    for y in (model(x), expected_output(model, x, padding, kernel_size)):
        assert y.shape == (3, 4)
        torch.testing.assert_close(y.exp().sum(1), torch.ones(3, dtype=torch.float64))
        gradients.append((y, *torch.autograd.grad(y[:, 0].sum(), list(model.parameters()))))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_seeds_and_copies() -> None:
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(DSN(3, 2, nf=4, init="random"))
    states = [dict(model.state_dict()) for model in models]
    assert same(states[0], states[1])
    assert models[0].sparse_layers()[0].pattern != models[2].sparse_layers()[0].pattern
    model, x = models[0].eval(), torch.randn(2, 3, 20)
    models[2].load_state_dict(states[0])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), models[2]):
        assert same(states[0], dict(twin.state_dict()))
        assert torch.equal(model(x), twin.eval()(x))
        assert twin.cost(20) == model.cost(20)
        for layer, other in zip(model.sparse_layers(), twin.sparse_layers(), strict=True):
            assert layer.regions == other.regions
