"""SparseConv1d is a drop-in nn.Conv1d: construction, conversion, change of pattern."""

from __future__ import annotations

import pytest
import torch
from layers import OPTIONS, run
from model_state import everything
from torch import nn
from torch.nn.utils import prune

from sparseconv import KernelCSR, Region, SparseConv1d, reference


@pytest.mark.parametrize("options", OPTIONS)
def test_from_dense_and_to_dense(options):
    conv = nn.Conv1d(4, 6, 5, **options).eval()
    mask = torch.rand(conv.weight.shape) < 0.4
    state, original = torch.get_rng_state(), conv.weight.detach().clone()
    layer = SparseConv1d.from_dense(conv, mask)
    dense = layer.to_dense()
    assert torch.get_rng_state().equal(state), "nothing is drawn"
    assert conv.weight.equal(original)
    assert not layer.training
    assert not dense.training
    assert repr(dense) == repr(conv)
    assert repr(layer) == repr(SparseConv1d(4, 6, 5, pattern=layer.pattern, **options))
    for name in ("in_channels", "kernel_size", "stride", "padding", "groups", "padding_mode"):
        assert getattr(layer, name) == getattr(conv, name)
    conv.weight.data.mul_(mask)
    for x in (torch.randn(2, 4, 30), torch.randn(4, 30)):
        assert run(dense, x).equal(run(conv, x))
        torch.testing.assert_close(run(layer, x), run(conv, x))
    assert SparseConv1d.from_dense(dense).pattern == KernelCSR.from_mask(mask)


def test_density_and_seed():
    torch.manual_seed(1)
    first = SparseConv1d(8, 16, 9)
    torch.manual_seed(1)
    again = SparseConv1d(8, 16, 9)
    assert first.dense_weight().equal(again.dense_weight())
    assert first.bias.equal(again.bias)
    assert first.pattern.nnz == round(0.2 * 8 * 16 * 9)
    assert SparseConv1d(8, 16, 9, density=0).values.shape == (0,)
    assert SparseConv1d(8, 16, 9, density=1).pattern == KernelCSR.full((16, 8, 9))
    assert first.regions == (Region((0, 16), (0, 9)),)
    assert SparseConv1d(4, 6, 5, padding=(2, 2)).to_dense().padding == (2,)


@pytest.mark.parametrize("fan_in", ["dense", "active"])
def test_initialisation_is_uniform_within_the_fan_in_bound(fan_in):
    mask = torch.rand(64, 50, 20, generator=torch.Generator().manual_seed(0)) < 0.2
    mask[0] = False
    layer = SparseConv1d(50, 64, 20, pattern=KernelCSR.from_mask(mask))
    layer.reset_parameters(fan_in=fan_in)
    counts = mask.sum((1, 2)).clamp(min=1) if fan_in == "active" else torch.full((64,), 1000)
    scaled = (layer.dense_weight() * counts.sqrt()[:, None, None])[mask].detach()
    # U(-1, 1): extremes near 1, mean 0 +- 1/sqrt(3 n), variance 1/3 +- sqrt(4/45 n); n ~ 12 600.
    assert 0.99 < scaled.abs().max() <= 1 + 1e-6
    assert scaled.mean().abs() < 5 / (3 * scaled.numel()) ** 0.5
    assert abs(scaled.var().item() - 1 / 3) < 5 * (4 / 45 / scaled.numel()) ** 0.5
    bias = (layer.bias * counts.sqrt()).detach()
    assert 0.8 < bias.abs().max() <= 1 + 1e-6


def test_from_dense_takes_the_pruned_weights_of_now():
    """The attributes of a pruned layer are those of its last forward pass."""
    conv = nn.Conv1d(4, 6, 5)
    prune.l1_unstructured(conv, "weight", 0.5)
    prune.random_unstructured(conv, "bias", 0.5)
    conv.weight_orig.data.mul_(2)
    conv.bias_orig.data.mul_(2)
    layer = SparseConv1d.from_dense(conv)
    narrow = SparseConv1d.from_dense(conv, conv.weight.abs() > 0.1)
    x = torch.randn(2, 4, 30)
    torch.testing.assert_close(layer(x), conv(x))
    assert layer.dense_weight().equal(conv.weight)
    assert layer.bias.equal(conv.bias)
    assert narrow.dense_weight().equal(conv.weight * narrow.pattern.to_mask())
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 5))
    torch.testing.assert_close(SparseConv1d.from_dense(weight_norm)(x), weight_norm(x))


@pytest.mark.parametrize(("weight", "bias"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("kind", ["plain", "parametrized", "pruned"])
def test_what_does_not_train_stays_so(weight, bias, kind):
    conv = nn.Conv1d(3, 4, 5)
    if kind == "parametrized":
        nn.utils.parametrizations.weight_norm(conv)
    elif kind == "pruned":
        prune.l1_unstructured(conv, "weight", 0.5)
    conv.requires_grad_(weight)
    conv.bias.requires_grad_(bias)
    with torch.set_grad_enabled(not weight):  # what computed attributes are of
        conv(torch.randn(1, 3, 9))
    layer = SparseConv1d.from_dense(conv)
    back = layer.to_dense()
    assert (layer.values.requires_grad, layer.bias.requires_grad) == (weight, bias)
    assert (back.weight.requires_grad, back.bias.requires_grad) == (weight, bias)


@pytest.mark.parametrize("nnz", [0, 30, 36, 50, 120])
def test_set_pattern(nnz):
    layer = SparseConv1d(4, 6, 5, density=0.3, dtype=torch.float64)
    assert layer.pattern.nnz == 36
    layer(torch.randn(1, 4, 9, dtype=torch.float64)).sum().backward()
    old, old_mask = layer.dense_weight().detach(), layer.pattern.to_mask()
    grad = reference.dense_weight(layer.values.grad, layer.pattern)
    parameter, memory = layer.values, layer.values.data_ptr()
    new = KernelCSR.random((6, 4, 5), nnz)
    layer.set_pattern(new)
    assert layer.values is parameter
    assert layer.values.shape == (nnz,)
    assert layer.pattern is new
    if nnz == 36:
        assert reference.dense_weight(layer.values.grad, new).equal(grad * new.to_mask())
    else:
        assert layer.values.grad is None
    assert layer.dense_weight().equal(old * new.to_mask()), "survivors keep, the others are 0"
    assert layer.crow_indices.equal(new.crow_indices)
    assert layer.col_indices.equal(new.col_indices)
    if nnz == 36:
        assert layer.values.data_ptr() == memory
        assert not new.to_mask().equal(old_mask)
    values = torch.randn(nnz, dtype=torch.float64)
    layer.set_pattern(new, values)
    assert layer.values.equal(values)
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    loss = layer(x).sum()  # this graph stays alive over the next change
    layer.set_pattern(KernelCSR.full((6, 4, 5)))
    layer(x).square().sum().backward()
    assert layer.values.grad.shape == (120,)
    assert loss.requires_grad


@pytest.mark.parametrize("nnz", [20, 36])
def test_rewire_moves_what_follows(nnz):
    layer = SparseConv1d(4, 6, 5, density=0.3)
    layer(torch.randn(1, 4, 9)).sum().backward()
    optimizer = torch.optim.Adam(layer.parameters())
    optimizer.step()
    state, values = optimizer.state[layer.values], layer.values
    source = torch.randint(-1, 36, (nnz,))
    follow = [state["exp_avg"], state["exp_avg_sq"]]
    expected = [torch.where(source < 0, 0, t.detach()[source]) for t in (values, *follow)]
    layer.rewire(KernelCSR.random((6, 4, 5), nnz), source, follow)
    assert layer.values is values
    for tensor, wanted in zip((values, *follow), expected, strict=True):
        assert tensor.equal(wanted)
    layer(torch.randn(1, 4, 9)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("options", [{"fused": True}, {}])
@pytest.mark.parametrize("density", [1.0, 0.05])
def test_moments_of_another_number_of_weights_are_refused(options, density):
    """The fused step would write outside their memory."""
    layer, other = SparseConv1d(4, 6, 5), SparseConv1d(4, 6, 5, density=density)
    changes = [
        lambda: layer.load_state_dict(other.state_dict()),
        lambda: layer.set_pattern(SparseConv1d(4, 6, 5).pattern),
    ]
    old, new = (torch.optim.Adam(layer.parameters(), **options) for _ in range(2))
    for change in changes:
        layer(torch.randn(1, 4, 9)).sum().backward()
        old.step()
        change()
        layer(torch.randn(1, 4, 9)).sum().backward()
        before = layer.values.tolist()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="optimizer"):
                old.step()
        assert layer.values.tolist() == before
        new.step()  # which has no state before
        assert layer.values.tolist() != before
        new.state[layer.values]["own"] = 3  # not all state is tensors
        new.step()
        old, new = new, torch.optim.Adam(layer.parameters(), **options)


@pytest.mark.parametrize("density", [0.5, 0.2])
def test_a_layer_made_in_inference_mode_changes_there_or_not_at_all(density):
    with torch.inference_mode():
        layer = SparseConv1d(4, 6, 5)
    other = SparseConv1d(4, 6, 5, density=density)
    assert layer.pattern.nnz == 24
    before = everything(layer)
    with pytest.raises(RuntimeError, match="inference_mode"):
        layer.set_pattern(other.pattern)
    with pytest.raises(RuntimeError, match="inference_mode"):
        layer.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match="inference_mode"):
        layer.reset_parameters()
    assert everything(layer) == before
    with torch.inference_mode():
        layer.load_state_dict(other.state_dict())
    assert layer.dense_weight().equal(other.dense_weight())


def test_a_layer_changed_in_inference_mode_still_trains():
    layer = SparseConv1d(4, 6, 5)
    with torch.inference_mode():
        layer.set_pattern(KernelCSR.full((6, 4, 5)))
    optimizer, before = torch.optim.SGD(layer.parameters(), 0.1), layer.values.tolist()
    layer(torch.randn(2, 4, 9)).sum().backward()
    optimizer.step()
    assert layer.values.tolist() != before


@pytest.mark.parametrize(
    ("name", "value"),
    [("stride", (2,)), ("padding", (3,)), ("dilation", (2,)), ("padding", "same")],
)
def test_an_attribute_that_is_set_counts(name, value):
    layer, x = SparseConv1d(2, 3, 5, density=0.5), torch.randn(1, 2, 12)
    setattr(layer, name, value)
    expected = nn.functional.conv1d(x, layer.dense_weight(), layer.bias, **{name: value})
    torch.testing.assert_close(layer(x), expected)
    if value != "same":
        given = list(value)
        setattr(layer, name, given)
        given[0] = 9  # which sets no attribute
        torch.testing.assert_close(layer(x), expected)
    layer.padding_mode = "mirror"
    with pytest.raises(ValueError, match="padding_mode"):
        layer(x)
