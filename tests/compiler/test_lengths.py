"""Series that change their length in ``torch.compile(model, backend="sparseconv")``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_steps import check, compiled, sparse
from layers import Function
from torch import Tensor, nn

from sparseconv.compiler import compiled_report

pytestmark = pytest.mark.promise("P7")


def shortening(x: Tensor, *layers: nn.Module) -> Tensor:
    """Compute a WaveNet's layers, whose series become shorter and are added to earlier ones."""
    *pairs, last = layers
    head: Tensor | None = None
    for conv, across in zip(pairs[::2], pairs[1::2], strict=True):
        filtered, gate = conv(x).chunk(2, 1)
        y = torch.tanh(filtered) * torch.sigmoid(gate)
        length = y.shape[2]
        head = y if head is None else head[:, :, -length:] + y
        x = x[..., -length:] + across(y)
    return last(head).relu() + x


def test_series_that_become_shorter() -> None:
    """They are cropped twice: before padding is read, and where they leave."""
    layers: list[nn.Module] = []
    for dilation in (1, 2, 4):
        layers += [sparse(4, 8, 3, padding=0, dilation=dilation), nn.Conv1d(4, 4, 1)]
    model = Function(shortening, *layers, sparse(4, 4, 3, padding=1))
    report = check(model, torch.randn(16, 4, 90))[0]
    assert (report.enters, report.leaves) == (1, 1)
    assert report.lanes["lanes_resample"] == 2, report
    assert report.lanes["lanes_activation"] == 3, report
    assert not report.outside, report


@pytest.mark.filterwarnings("error:Raw SymInt")  # the start of narrow has no number
def test_series_that_become_shorter_at_dynamic_lengths() -> None:
    model = nn.Sequential(sparse(1, 4, 3, padding=0), nn.ReLU(), sparse(4, 4, 3, padding=0)).eval()
    run = compiled(lambda x: model(x).narrow(2, -9, 8))
    for length in (20, 30, 31):
        x = torch.randn(2, 1, length)
        torch.testing.assert_close(run(x), model(x)[..., -9:-1])


def test_what_is_cropped_is_not_seen() -> None:
    """Not in gradients, nor without gradients, where a crop is a constant."""
    first, last = sparse(4, 8, 5), sparse(8, 8, 5, padding=0)

    def without_gradients(x: Tensor) -> Tensor:
        y = first(x)
        with torch.no_grad():
            z = y[..., 1:]
        return last(z)

    def dropped(x: Tensor) -> Tensor:
        return first(F.elu(x)[..., 1:])

    x = torch.randn(16, 4, 40)
    compiled(without_gradients)(x).sum().backward()
    assert first.values.grad is None
    x[..., 0] = float("nan")
    compiled(dropped)(x).sum().backward()
    assert first.values.grad is not None
    assert first.values.grad.isfinite().all()


def test_little_is_computed_of_what_is_cropped() -> None:
    last = Function(lambda x: F.relu(x)[..., -8:])
    model = nn.Sequential(sparse(4, 4, 5), last, sparse(4, 4, 5, padding=0))
    assert check(model, torch.randn(16, 4, 400))[0].lanes["lanes_resample"] == 2


def test_forms_of_arguments() -> None:
    """By name, negative, of no channels: what has no rule runs in torch."""
    conv, weight = sparse(4, 8, 5), torch.tensor(0.25)

    def forms(x: Tensor) -> Tensor:
        y = conv(x)
        a = torch.narrow(y, dim=2, start=-12, length=11) + y.narrow(-1, -12, 11)
        b = F.prelu(y, weight=weight) + F.pad(y, (-40, 40))
        c = F.prelu(y.transpose(1, 2), weight.view(1)).transpose(1, 2).view(16, -1)
        (d, e), (f, g) = y.chunk(2, -1), y.chunk(2, 1)
        return a.sum() + b.sum() + c.sum() + (d * e.neg()).sum() + (f.tanh() * g.relu()).sum()

    x = torch.randn(16, 4, 40)
    torch.testing.assert_close(compiled(forms)(x), forms(x))


def test_functions_of_single_samples() -> None:
    names = "celu gelu hardshrink hardswish hardtanh leaky_relu logsigmoid mish relu6 selu silu"
    names += " softplus softshrink softsign tanhshrink"

    def functions(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
        y = z = first(x)
        for name in names.split():
            z = z.add(getattr(F, name)(y), alpha=0.5)
        return last(z)

    report = check(Function(functions, sparse(4, 8, 5), sparse(8, 8, 5)), torch.randn(16, 4, 40))[0]
    assert not report.outside, report


def test_replicated_ends_are_read_by_the_convolution() -> None:
    def after(pad: Callable[[Tensor], Tensor]) -> nn.Module:
        layers = sparse(4, 8, 3, padding=0), nn.BatchNorm1d(8), nn.ReLU()
        return nn.Sequential(Function(pad), *layers)

    check(after(lambda x: F.pad(x, (-1, 3))), torch.randn(16, 4, 40))
    padded = after(lambda x: F.pad(x, (1, 1), mode="replicate"))
    report = check(padded, torch.randn(4, 4, 40))[0]
    assert (report.lanes, report.enters) == ({"lanes_conv": 1, "lanes_norm": 1}, 1), report


def test_a_norm_reads_the_parts_of_what_nothing_else_reads() -> None:
    def joined(x: Tensor, first: nn.Module, second: nn.Module, *more: nn.Module) -> Tensor:
        norm, *others = more
        y = torch.cat([first(x), second(x)], 1)
        z = F.max_pool1d(norm(y), 3, 1, 1)
        return z + others[0](y) if others else z

    for others in ([], [nn.Sigmoid()]):
        layers = sparse(4, 8, 5), sparse(4, 8, 5), nn.BatchNorm1d(16), *others
        report = check(Function(joined, *layers), torch.randn(16, 4, 40))[0]
        assert report.lanes["cat"] == len(others), report


def test_statistics_are_updated_in_order() -> None:
    """A norm may not move past what reads or updates its statistics."""

    def twice(x: Tensor, first: nn.Module, second: nn.Module, norm: Any) -> Tensor:
        y = F.relu(norm(first(x)) + torch.sigmoid(norm(second(x))))
        z = norm(second(x))
        mean = norm.running_mean.clone()
        return y + F.relu(z + first(x)) + mean[:, None]

    model = Function(twice, sparse(4, 8, 5), sparse(4, 8, 5), nn.BatchNorm1d(8))
    assert check(model, torch.randn(16, 4, 40))[0].lanes["lanes_norm"] == 3


def test_nothing_moves_past_what_writes_a_weight() -> None:
    def written(x: Tensor, sparse: Any, dense: Any, norm: nn.Module) -> Tensor:
        y, z = sparse(x), dense(x)
        sparse.bias.add_(1.0)
        dense.bias.mul_(2.0)
        return F.relu(norm(y) + z)

    for training in (True, False):
        layers = sparse(4, 8, 5), nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8)
        model = Function(written, *layers).train(training)
        twin, x = copy.deepcopy(model), torch.randn(16, 4, 40)
        with torch.no_grad():
            torch.testing.assert_close(compiled(model)(x), twin(x))


def test_several_outputs_may_be_written() -> None:
    def largest(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        y, index = x.new_zeros(x.shape), x.new_zeros(x.shape, dtype=torch.long)
        torch.max(x[None], 0, out=(y, index))
        return first(y) + second(y)

    model, x = Function(largest, sparse(4, 8, 5), sparse(4, 8, 5)), torch.randn(16, 4, 40)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(x), model(x))


def test_permuted_results_stay_permuted() -> None:
    def permuted(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
        y = F.dropout(norm(conv(x)).transpose(1, 2), 0.0, training=True)
        return torch.relu(y).transpose(1, 2).view(16, -1)

    model = Function(permuted, sparse(4, 8, 5), nn.BatchNorm1d(8))
    report = check(model, torch.randn(16, 4, 40))[0]
    assert report.outside["its result is stored in another order"]


def test_a_length_that_pooling_fixed() -> None:
    """The second graph is for any length at first, until it comes to the pool."""
    layers = sparse(4, 8, 5), nn.MaxPool1d(3, 1, 1), sparse(8, 8, 3, padding=0), sparse(8, 4, 5)
    model = nn.Sequential(*layers)
    run = compiled(model)
    for length in (40, 41, 57):
        x = torch.randn(4, 4, length)
        torch.testing.assert_close(run(x), model(x))


def test_options_by_name_and_from_sizes() -> None:
    def named(x: Tensor, conv: nn.Module) -> Tensor:
        y = conv(x)
        a, b = torch.chunk(input=y, chunks=2, dim=1)
        c, _ = torch.split(tensor=y, split_size_or_sections=4, dim=1)
        few = torch.narrow(y.mean(2), dim=1, start=0, length=3)
        pooled = F.avg_pool1d(y, y.shape[-1]) + F.max_pool1d(y, y.shape[-1])
        return (a * b + c).flatten(1).sum(1) + few.sum(1) + pooled.sum((1, 2))

    model = Function(named, sparse(4, 8, 5))
    run = compiled(model)
    for length in (40, 48, 56):
        x = torch.randn(16, 4, length)
        torch.testing.assert_close(run(x), model(x))
    assert "its options are computed from sizes" in str(compiled_report(model))


def test_u_nets() -> None:
    """Down and up again, by averages, next to what is skipped."""

    def steps(x: Tensor, first: nn.Module, second: nn.Module, last: nn.Module) -> Tensor:
        skipped = F.elu(first(x))
        y = F.interpolate(second(F.avg_pool1d(F.elu(skipped, 0.5), 2)), scale_factor=2)
        return last(F.glu(torch.cat([y, skipped[..., : y.shape[2]]], 1), 1))

    model = Function(steps, *(sparse(4, 4, 3, padding=1) for _ in range(3)))
    report = check(model, torch.randn(16, 4, 61))[0]
    assert (report.enters, report.leaves) == (1, 1)
    assert not report.outside, report
