"""The instance-wise sparsity loss is its formula, and watches a model only when asked to."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pruning_networks import Drawn, classifier, data
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.pruning.sparsity_loss import InstanceSparsity, Stage, published_stages

X, Y = data(5)
SCALE = 0.25


def outputs_of(model: nn.Module, stages: list[str], x: Tensor) -> dict[str, Tensor]:
    """What modules compute in a pass of their own."""
    found: dict[str, Tensor] = {}
    for name in stages:
        hook = lambda _, __, y, name=name: found.update({name: y})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    model(x)
    return found


def by_loops(output: Tensor, channels: int) -> float:
    total = []
    for series in output.tolist():
        total += [math.sqrt(math.fsum(v * v for v in channel)) for channel in series[:channels]]
    return math.fsum(total)


STAGES = [Stage("2", 3.0), Stage("0", 0.5, 5)]


def test_the_formula() -> None:
    model = classifier()
    found = outputs_of(copy.deepcopy(model), ["2", "0"], X)
    wanted = SCALE * (3 * by_loops(found["2"], 8) + 0.5 * by_loops(found["0"], 5))
    with InstanceSparsity(model, STAGES, SCALE) as penalty:
        out = model(X)
        loss = penalty()
    unit = 2.0**-53
    assert abs(loss.item() - wanted) <= (5 * 13 + 12 + 10) * unit * wanted
    assert out.shape == (5, 3)


def test_it_adds_up_passes_in_train_mode_and_leaves_no_trace() -> None:
    model = classifier()
    penalty = InstanceSparsity(model, ["0"])
    model(X)
    with pytest.raises(RuntimeError, match="non-empty"):
        penalty()  # not inside of a with block
    with penalty:
        one = (model(X), penalty())[1]
        model(X)
        model(X)
        assert penalty().item() == pytest.approx(2 * one.item(), rel=1e-12)
        with pytest.raises(RuntimeError, match="non-empty"):
            penalty()
        model.eval()(X)
        with torch.no_grad():
            model.train()(X)
        with pytest.raises(RuntimeError, match="non-empty"):
            penalty()
        model(X)
    with penalty, pytest.raises(RuntimeError, match="non-empty"):
        penalty()  # of the block before nothing is left
    with pytest.raises(KeyError), penalty:
        raise KeyError
    assert not any(module._forward_hooks for module in model.modules())


def test_lite_counts_its_learned_filters() -> None:
    torch.manual_seed(0)
    model, x = sc.models.LITE(2, 3, nf=5).double(), X
    model = sc.prune_filters(model, x, Drawn(0, False), fraction=0.4).model
    learned = 9
    assert sum(len(conv.weight) for conv in model.blocks[0][:-1]) == learned
    assert published_stages(model) == [
        ("blocks.2", 4.0, learned), ("blocks.6", 2.0, None), ("blocks.10", 1.0, None),
    ]  # fmt: skip
    found = outputs_of(copy.deepcopy(model), ["blocks.2", "blocks.6", "blocks.10"], x)
    assert found["blocks.2"].shape[1] == learned + 17
    wanted = 4 * by_loops(found["blocks.2"], learned) + 2 * by_loops(found["blocks.6"], 99)
    wanted += by_loops(found["blocks.10"], 99)
    with InstanceSparsity(model) as penalty:
        model(x)
        assert penalty().item() == pytest.approx(2e-5 * wanted, rel=1e-12)


def test_inception_time_counts_each_module_after_its_addition() -> None:
    stages = published_stages(sc.models.InceptionTime(2, 3, nf=4))
    ends = (".body.0", ".body.1", "")
    assert [x.module for x in stages] == [f"blocks.{i}{end}" for i in range(2) for end in ends]
    assert all((stage.weight, stage.channels) == (1, None) for stage in stages)


def test_sums_of_small_types_are_not_rounded_away() -> None:
    model = nn.Conv1d(1, 257, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    with InstanceSparsity(model, [""], 1.0) as penalty:
        model(torch.ones(1, 1, 4).bfloat16())
        assert penalty().item() == 257 * 2
    assert torch.tensor(257.0 * 2).bfloat16().item() != 257 * 2
