"""Series that change their length in ``torch.compile(model, backend="sparseconv")``."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from graph_steps import check, compiled, sparse
from torch import Tensor, nn

from sparseconv.compiler import compiled_report

pytestmark = pytest.mark.promise("P7")


class Shortening(nn.Module):
    """A WaveNet's layers, whose series become shorter and are added to earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(sparse(4, 8, 3, padding=0, dilation=d) for d in (1, 2, 4))
        self.across = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in self.convs)
        self.last = sparse(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        head: Tensor | None = None
        for conv, across in zip(self.convs, self.across, strict=True):
            filtered, gate = conv(x).chunk(2, 1)
            y = torch.tanh(filtered) * torch.sigmoid(gate)
            length = y.shape[2]
            head = y if head is None else head[:, :, -length:] + y
            x = x[..., -length:] + across(y)
        assert head is not None
        return self.last(head).relu() + x


def test_series_that_become_shorter() -> None:
    """They are cropped twice: before padding is read, and where they leave."""
    report = check(Shortening(), torch.randn(16, 4, 90))[0]
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
    convs = [sparse(4, 4, 5), sparse(4, 4, 5, padding=0)]
    report = check(nn.Sequential(convs[0], Last(8), convs[1]), torch.randn(16, 4, 400))[0]
    assert report.lanes["lanes_resample"] == 2


class Last(nn.Module):
    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)[..., -self.samples :]


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

    class Functions(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = z = self[0](x)
            for name in names.split():
                z = z.add(getattr(F, name)(y), alpha=0.5)
            return self[1](z)

    report = check(Functions(sparse(4, 8, 5), sparse(8, 8, 5)), torch.randn(16, 4, 40))[0]
    assert not report.outside, report


def test_replicated_ends_are_read_by_the_convolution() -> None:
    class Padded(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self[2](self[1](self[0](F.pad(x, (1, 1), mode="replicate"))))
            return y

    class Cut(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self[2](self[1](self[0](F.pad(x, (-1, 3)))))
            return y

    check(Cut(sparse(4, 8, 3, padding=0), nn.BatchNorm1d(8), nn.ReLU()), torch.randn(16, 4, 40))
    model = Padded(sparse(4, 8, 3, padding=0), nn.BatchNorm1d(8), nn.ReLU())
    report = check(model, torch.randn(4, 4, 40))[0]
    assert (report.lanes, report.enters) == ({"lanes_conv": 1, "lanes_norm": 1}, 1), report


def test_a_norm_reads_the_parts_of_what_nothing_else_reads() -> None:
    class Joined(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            first, second, norm, *others = self
            y = torch.cat([first(x), second(x)], 1)
            z = F.max_pool1d(norm(y), 3, 1, 1)
            return z + others[0](y) if others else z

    for others in ([], [nn.Sigmoid()]):
        layers = sparse(4, 8, 5), sparse(4, 8, 5), nn.BatchNorm1d(16), *others
        report = check(Joined(*layers), torch.randn(16, 4, 40))[0]
        assert report.lanes["cat"] == len(others), report


def test_statistics_are_updated_in_order() -> None:
    """A norm may not move past what reads or updates its statistics."""

    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            first, second, norm = self
            y = F.relu(norm(first(x)) + torch.sigmoid(norm(second(x))))
            z = norm(second(x))
            mean = norm.running_mean.clone()
            return y + F.relu(z + first(x)) + mean[:, None]

    model = Twice(sparse(4, 8, 5), sparse(4, 8, 5), nn.BatchNorm1d(8))
    assert check(model, torch.randn(16, 4, 40))[0].lanes["lanes_norm"] == 3


def test_nothing_moves_past_what_writes_a_weight() -> None:
    class Written(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            sparse, dense, norm = self
            y, z = sparse(x), dense(x)
            sparse.bias.add_(1.0)
            dense.bias.mul_(2.0)
            return F.relu(norm(y) + z)

    for training in (True, False):
        model = Written(sparse(4, 8, 5), nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8)).train(training)
        twin, x = copy.deepcopy(model), torch.randn(16, 4, 40)
        with torch.no_grad():
            torch.testing.assert_close(compiled(model)(x), twin(x))


def test_several_outputs_may_be_written() -> None:
    class Largest(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y, index = x.new_zeros(x.shape), x.new_zeros(x.shape, dtype=torch.long)
            torch.max(x[None], 0, out=(y, index))
            z: Tensor = self[0](y) + self[1](y)
            return z

    model, x = Largest(sparse(4, 8, 5), sparse(4, 8, 5)), torch.randn(16, 4, 40)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(x), model(x))


def test_permuted_results_stay_permuted() -> None:
    class Permuted(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout(self[1](self[0](x)).transpose(1, 2), 0.0, training=True)
            return torch.relu(y).transpose(1, 2).view(16, -1)

    model = Permuted(sparse(4, 8, 5), nn.BatchNorm1d(8))
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
    class Named(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = self[0](x)
            a, b = torch.chunk(input=y, chunks=2, dim=1)
            c, _ = torch.split(tensor=y, split_size_or_sections=4, dim=1)
            few = torch.narrow(y.mean(2), dim=1, start=0, length=3)
            pooled = F.avg_pool1d(y, y.shape[-1]) + F.max_pool1d(y, y.shape[-1])
            return (a * b + c).flatten(1).sum(1) + few.sum(1) + pooled.sum((1, 2))

    model = Named(sparse(4, 8, 5))
    run = compiled(model)
    for length in (40, 48, 56):
        x = torch.randn(16, 4, length)
        torch.testing.assert_close(run(x), model(x))
    assert "its options are computed from sizes" in str(compiled_report(model))


class Steps(nn.Module):
    """Down and up again, by averages, next to what is skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(sparse(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.convs
        skipped = F.elu(first(x))
        y = F.interpolate(second(F.avg_pool1d(F.elu(skipped, 0.5), 2)), scale_factor=2)
        return last(F.glu(torch.cat([y, skipped[..., : y.shape[2]]], 1), 1))


def test_u_nets() -> None:
    report = check(Steps(), torch.randn(16, 4, 61))[0]
    assert (report.enters, report.leaves) == (1, 1)
    assert not report.outside, report
