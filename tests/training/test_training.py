"""The training loop follows the recipe and keeps the best epoch."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import RECIPE, Constant, WithDropout, data, network, run, same
from torch import Tensor, nn

from sparseconv import DSTScheduler
from sparseconv.pruning.sparsity_loss import InstanceSparsity
from sparseconv.running import batch_sizes, predict_log_proba
from sparseconv.training import checkpoint
from sparseconv.training.checkpoint import digest
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe


def test_defaults_are_the_published_recipe() -> None:
    assert Recipe() == Recipe(
        epochs=1000, lr=3e-4, lr_min=1e-4, weight_decay=0.0, batch_size=None,
        update_every_epochs=5, update_every_steps=None, skip_step_at_update=False,
        decay_share=0.8, prune_fraction=0.5, prune_floor=0.001, grow="random", precision="float32",
        seed=0,
    )  # fmt: skip
    sizes = {n: Recipe().batch_size_for(n) for n in (1, 20, 29, 30, 50, 159, 160, 5000)}
    assert sizes == {1: 2, 20: 2, 29: 2, 30: 3, 50: 5, 159: 15, 160: 16, 5000: 16}


def test_learning_rate_is_the_cosine_per_epoch() -> None:
    recipe = Recipe(epochs=9, lr=0.1, lr_min=0.02)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9, 0.02)
    for epoch in range(1, 10):
        assert recipe.lr_in(epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()


def test_numpy_scalars_are_taken_and_saved(tmp_path: Path) -> None:
    recipe = Recipe(epochs=np.int64(1), lr=np.float32(0.01), seed=np.uint64(2**63 - 1))
    run(network(), recipe, out=tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoint.pt")["recipe"]
    assert saved == asdict(recipe)
    assert {type(saved[name]) for name in ("epochs", "lr", "seed")} == {int, float}


def test_an_output_in_a_dict() -> None:
    model = network()
    model.register_forward_hook(lambda module, args, output: {"logits": output, "loss": None})
    assert same(run(model).history, run(network()).history)


def test_every_series_once_per_epoch_in_a_new_order_last_batch_kept() -> None:
    model, batches = network(), []
    model.register_forward_pre_hook(lambda module, args: batches.append(args[0][:, 0, 0].tolist()))
    run(model, replace(RECIPE, epochs=3))
    # The first pass checks the model, then an epoch takes four.
    epochs = [[x for batch in batches[i : i + 4] for x in batch] for i in (1, 5, 9)]
    assert [len(batch) for batch in batches[1:]] == [6, 6, 6, 2] * 3
    everything = sorted(data()[0][:, 0, 0].tolist())
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    cases = ((18, 16, [16, 2]), (3, 2, [3]), (1, 2, [1]), (3, 1, [1, 1, 1]), (0, 4, [0]))
    for n_cases, batch_size, sizes in cases:
        assert batch_sizes(n_cases, batch_size) == sizes
    seen: list[int] = []
    model = nn.Sequential(
        nn.Conv1d(1, 3, 5), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.BatchNorm1d(3),
        nn.Linear(3, 2), nn.LogSoftmax(1),
    )  # fmt: skip
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    result = train(model, *data(33), Recipe(epochs=2, batch_size=16), verbose=False)
    assert seen == [17, 16, 17, 16, 17]  # the first checks the model
    assert model[3].num_batches_tracked == 2 * result.best_epoch, "and changes no statistics"


def test_a_model_that_squeezes_one_series_away() -> None:
    class Squeezing(WithDropout):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze()

    assert len(run(Squeezing(), replace(RECIPE, epochs=1, batch_size=19)).history) == 1
    assert predict_log_proba(Squeezing(), torch.zeros(65, 1, 24)).shape == (65, 2)


@pytest.mark.parametrize("grow", ["random", "gradient", "static"])
def test_history(grow: str) -> None:
    model = network()
    first = [layer.pattern for layer in model.sparse_layers()]
    recipe = Recipe(epochs=12, batch_size=7, grow=grow)
    result = run(model, recipe, validation=data(9, seed=1))
    assert [row["epoch"] for row in result.history] == list(range(1, 13))
    updates = [] if grow == "static" else [5, 10]
    assert [row["epoch"] for row in result.history if row["updated"]] == updates
    for row in result.history:
        assert row["lr"] == recipe.lr_in(row["epoch"])
        t = min(row["epoch"] * 3, 28)  # 36 steps; 80 % of them are 28
        fraction = 0.001 + 0.2495 * (1 + math.cos(math.pi * t / 28))
        assert row["prune_fraction"] == pytest.approx(0 if grow == "static" else fraction)
        assert row["seconds"] > 0
        assert row["cpu_seconds"] > 0
        assert 0 <= row["train_accuracy"] <= 1
        assert 0 <= row["test_accuracy"] <= 1
        assert row["test_loss"] > 0
    assert [layer.pattern.nnz for layer in model.sparse_layers()] == [p.nnz for p in first]
    weights = sum(p.numel for p in first)
    started = sum(p.nnz for p in first) / weights
    assert (result.itop_rate == started) if grow == "static" else (result.itop_rate > started)


def test_loss_and_accuracy_are_means_over_series() -> None:
    result = run(Constant(), replace(RECIPE, epochs=5))
    assert result.history[0]["train_loss"] == pytest.approx(math.log(2))
    assert result.history[0]["train_accuracy"] == 0.5  # argmax of equals is class 0: half of them
    assert result.best_epoch == 5  # the last of equal epochs
    for model, itop in ((WithDropout(), None), (network(sparsity=0.0), 1.0)):
        result = run(model)
        assert result.itop_rate == itop
        assert not any(row["updated"] for row in result.history)


def test_the_best_epoch_is_left_with_its_own_pattern() -> None:
    seen: list[dict[str, Any]] = []

    class Recording(DSTScheduler):
        def step(self) -> bool:
            seen.append(copy.deepcopy(self.model.state_dict()))
            return super().step()

    def factory(model: nn.Module, optimizer: Any, every: int, end: int, decay: int) -> Any:
        Recording.model = model
        return Recording(model, optimizer, update_every=every, end_step=end, decay_steps=decay)

    model = network()
    count = 0

    def worsen(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return output - int(count > 1 + 4 * 5)  # one pass checks the model

    model.register_forward_hook(worsen)
    recipe = replace(RECIPE, epochs=9, update_every_epochs=1)
    result = run(model, recipe, scheduler_factory=factory)
    losses = [row["train_loss"] for row in result.history]
    assert result.best_loss == min(losses) == losses[result.best_epoch - 1]
    assert result.best_epoch <= 5
    # After the best epoch's last optimizer step, before the update that followed it.
    assert same(dict(model.state_dict()), dict(seen[4 * result.best_epoch - 1]))
    assert not same(dict(seen[4 * result.best_epoch - 1]), dict(seen[-1]))
    assert not model.training


def test_steps_between_updates_and_skipped_optimizer_steps() -> None:
    def updates(**arguments: Any) -> tuple[list[tuple[int, ...]], list[float]]:
        made: list[tuple[int, ...]] = []
        optimizers: list[Any] = []

        class Counting:
            prune_fraction_now = 0.25

            def step(self) -> bool:
                return False

        def factory(model: nn.Module, optimizer: Any, *steps: int) -> Counting:
            made.append(steps)
            optimizers.append(optimizer)
            return Counting()

        result = run(network(), replace(RECIPE, epochs=5, **arguments), scheduler_factory=factory)
        assert result.itop_rate is None
        assert {row["prune_fraction"] for row in result.history} == {0.25}
        (state, *_) = optimizers[0].state.values()
        return made, [float(state["step"])]

    assert updates() == ([(8, 20, 16)], [20])
    assert updates(update_every_steps=3, decay_share=0.5) == ([(3, 20, 10)], [20])
    assert updates(update_every_steps=3, skip_step_at_update=True) == ([(3, 20, 16)], [14])


@pytest.mark.promise("P3")
@pytest.mark.parametrize(
    ("make", "first_rate"), [(network, 0.0), (WithDropout, 0.5), (WithDropout, 0.0)]
)
def test_the_seed_decides_and_nothing_else(make: Any, first_rate: float, tmp_path: Path) -> None:
    def set_rate(rate: float) -> None:
        for dropout in [m for m in model.modules() if isinstance(m, nn.Dropout)]:
            dropout.p = rate

    contents = []
    for number, (seed, validation) in enumerate([(3, None), (3, data(8, seed=9)), (4, None)]):
        model = make()
        torch.manual_seed(number)  # torch's global generator must not matter, nor change
        before = torch.get_rng_state()
        out = tmp_path / str(number)
        set_rate(first_rate)
        options = {"validation": validation, "on_epoch": lambda _: set_rate(0.5)}
        run(model, replace(RECIPE, seed=seed), out=out, **options)
        assert torch.equal(torch.get_rng_state(), before)
        content = checkpoint.load(out / "checkpoint.pt")
        contents.append({key: content[key] for key in ("state", "optimizer", "best", "rng")})
    assert same(contents[0], contents[1])
    assert not same(contents[0]["state"], contents[2]["state"])


@pytest.mark.promise("P10")
def test_progress_bar_and_what_is_said_without_tqdm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verbose in (True, False):
        run(network(), verbose=verbose)
        assert ("7/7" in capsys.readouterr().err) == verbose
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.warns(UserWarning, match="tqdm is not installed"):
        assert len(run(network(), verbose=True).history) == 7


@pytest.mark.promise("P8")
def test_predict_log_proba() -> None:
    """Every module stays in its mode."""
    model = network()
    X, _ = data(11)
    expected = model.eval()(X)
    frozen = model.get_submodule("blocks.0.norm")
    for mode in (True, False):
        model.train(mode)
        frozen.eval()
        got = predict_log_proba(model, X, batch_size=4)
        torch.testing.assert_close(got, expected)
        assert {m.training for m in model.modules() if m is not frozen} == {mode}
        assert not frozen.training
        assert not got.requires_grad
    indices = nn.Sequential(nn.Embedding(3, 2), nn.Flatten(), nn.LogSoftmax(1))
    assert predict_log_proba(indices, torch.tensor([[0, 2]])).shape == (1, 4)


def test_where_gradients_are_off_and_the_digest_of_any_strides() -> None:
    with torch.no_grad():
        found = run(network()).history
        assert not torch.is_grad_enabled()
    assert same(found, run(network()).history)
    X, _ = data()
    # Of one time point, with the cases last in memory: contiguous, says torch, strides and all.
    last = X[:, 0, 0].clone().view(1, 1, -1).permute(2, 1, 0)
    assert last.is_contiguous()
    assert digest(last) == digest(X[:, :1, :1].clone())


def test_the_history_holds_the_penalty() -> None:
    X, y = data(5)  # one batch
    one, given = Recipe(epochs=1, batch_size=5, grow="static"), []

    class Counted(InstanceSparsity):
        def __call__(self) -> Tensor:
            given.append(super().__call__())
            return given[-1]

    model, again = network(), network()
    options = {"verbose": False, "validation": data(9, seed=1)}  # which is not watched
    both = train(
        model, X, y, one, penalty=Counted(model, ["blocks.0.relu"], 0.1), **options
    ).history[0]
    alone = train(again, X, y, one, **options).history[0]
    assert len(given) == 1
    assert given[0] > 0
    loss = alone["train_loss"] + given[0].item()
    assert both["train_loss"] == pytest.approx(loss, rel=1e-6)  # of float32
    assert not same(model.state_dict(), again.state_dict()), "its gradient moves the weights"
    assert not any(module._forward_hooks for module in model.modules())


def test_precision_is_autocast_of_the_training_passes() -> None:
    X, y = data(20)
    losses, dtypes = {}, {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model, found = network(), []
        model.head[1].register_forward_hook(lambda *a, found=found: found.append(a[2].dtype))
        result = train(model, X, y, replace(RECIPE, precision=precision), verbose=False)
        losses[precision], dtypes[precision] = result.history[-1]["train_loss"], found
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert predict_log_proba(model, X).dtype == torch.float32
    assert set(dtypes["float32"]) == {torch.float32}
    # A first pass tries the smallest batch, the last ones predict.
    assert dtypes["bfloat16"].count(torch.bfloat16) == len(dtypes["float32"]) - 2
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
