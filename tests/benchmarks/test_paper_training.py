"""One job of a plan: its row, its cost, its moments, and going on where it was killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_plan import ROOT, job_with, without_times

from benchmarks.paper import training
from benchmarks.paper.archives import Shape, open_archive, read
from benchmarks.paper.job import perform
from benchmarks.paper.networks import MomentsDST, multiply_adds
from benchmarks.paper.plan import Job, read_plan
from benchmarks.paper.training import (
    checkpoint_interval,
    first_model,
    looks,
    scheduler_factory,
)
from sparseconv.bench.network.masked import PremaskedConv1d
from sparseconv.measure.machine import commit, threads
from sparseconv.models import DSN
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

SHAPE = Shape(20, 20, 3, 50, 4)


def test_the_row_is_what_training_gives(archive: Path, plan: Path, tmp_path: Path) -> None:
    opened = open_archive(archive)
    job = next(job for job in read_plan(plan, opened) if job.key == ("small", "Long", 1))
    row = perform(job, opened.sources["Long"], tmp_path / "job")
    data = read(opened.sources["Long"])
    torch.manual_seed(1)
    model = DSN(2, 2, nf=3, depth=2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(model, data.X_train, data.y_train, job.recipe(), progress=False)
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        predicted = model(torch.as_tensor(data.X_test)).argmax(1).numpy()
    assert row["accuracy"] == (predicted == data.y_test).mean()
    assert (row["train_loss"], row["best_epoch"]) == (result.best_loss, result.best_epoch)
    assert row["itop_rate"] == result.itop_rate
    assert (row["params"], row["macs"]) == (model.cost(30).params, model.cost(30).macs_executed)


def test_an_ensemble_is_the_mean_of_networks_trained_by_themselves(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_archive(archive)
    source, network = opened.sources["Long"], {"nf": 3, "depth": 2}
    recipe = {"epochs": 12}
    job = Job("two", "Long", 1, job_with(network=network, recipe=recipe, members=2).options)
    row = perform(job, source, tmp_path / "job")
    data = read(source)
    X, y = torch.as_tensor(data.X_test), torch.as_tensor(data.y_test)
    models, losses = [], []
    for seed in (2, 3):  # that no other job of the run has
        torch.manual_seed(seed)
        models.append(DSN(2, 2, **network))
        own = Recipe(seed=seed, **recipe)
        with threads(1):
            losses.append(train(models[-1], data.X_train, data.y_train, own, progress=False))
    with torch.no_grad():
        proba = sum(model(X).exp() for model in models) / 2
    assert row["accuracy"] == (proba.argmax(1) == y).double().mean().item()
    assert row["test_loss"] == pytest.approx(float(-proba[range(len(y)), y].log().mean()))
    assert row["train_loss"] == pytest.approx(sum(found.best_loss for found in losses) / 2)
    for key, one in (("params", "params"), ("macs", "macs_executed"), ("flops_paper",) * 2):
        assert row[key] == sum(getattr(model.cost(30), one) for model in models)
    assert row["curve"] == []
    whole = (tmp_path / "job" / "0" / "checkpoint.pt").read_bytes()
    again: list[int] = []

    def counting(*arguments: Any, on_epoch: Any, **settings: Any) -> Any:
        return train(*arguments, on_epoch=lambda found: again.append(len(found)), **settings)

    monkeypatch.setattr(training, "train", counting)
    (tmp_path / "job" / "1" / "checkpoint.pt").unlink()
    assert without_times(perform(job, source, tmp_path / "job")) == without_times(row)
    assert again == [*range(1, 13)], "only the member that was not done"
    (tmp_path / "job" / "0" / "checkpoint.pt").write_bytes(whole[:99])
    assert without_times(perform(job, source, tmp_path / "job")) == without_times(row)
    assert len(again) == 3 * 12, "a damaged beginning is begun again, with all members"


def test_multiply_adds() -> None:
    model = first_model(job_with().options, 0, SHAPE)
    assert isinstance(model, DSN)
    assert multiply_adds(model, SHAPE) == model.cost(50).macs_executed
    masked = first_model(job_with(weights="masked dense").options, 0, SHAPE)
    assert multiply_adds(masked, SHAPE) == model.cost(50).macs_dense
    assert masked.training


@pytest.mark.parametrize("moments", ["mean", "corrected"])
def test_moments_of_grown_weights(moments: str) -> None:
    torch.manual_seed(0)
    model = first_model(job_with().options, 0, SHAPE)
    make = scheduler_factory(job_with(moments=moments), job_with().recipe())
    assert make is not None
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    dst = make(model, optimizer, 3, 100, 100)
    assert isinstance(dst, MomentsDST)
    x, target = torch.randn(8, 3, 50), torch.arange(8) % 4
    layer = dst.layers[1]
    for step in range(1, 8):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(model(x), target).backward()
        before, ages = layer.values.detach().clone(), dst.ages[1].clone()
        optimizer.step()
        state = optimizer.state[layer.values]
        if moments == "corrected":
            first, second = (
                state[name] / (1 - beta ** (ages + 1))
                for name, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999))
            )
            wanted = before - 1e-2 * first / (second.sqrt() + 1e-8)
            torch.testing.assert_close(layer.values.detach(), wanted, rtol=1e-4, atol=1e-6)
        updated = dst.step()
        assert updated == (step % 3 == 0)
        if updated:
            grown = layer.values == 0
            assert (dst.ages[1][grown] == 0).all()
            assert 0 < grown.sum() <= 0.5 * len(grown) + len(layer.regions)
            seen = state["exp_avg_sq"][grown]
            assert (seen > 0).all() if moments == "mean" else (seen == 0).all()
    content = json.loads(json.dumps({"ages": [age.tolist() for age in dst.state_dict()["ages"]]}))
    other = make(model, optimizer, 3, 100, 100)
    other.load_state_dict(dst.state_dict())
    assert [age.tolist() for age in other.ages] == content["ages"]


def test_mean_is_the_regions() -> None:
    torch.manual_seed(0)
    model = first_model(job_with().options, 0, SHAPE)
    make = scheduler_factory(job_with(moments="mean"), job_with().recipe())
    assert make is not None
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    dst = make(model, optimizer, 1, 100, 100)
    torch.nn.functional.nll_loss(model(torch.randn(8, 3, 50)), torch.arange(8) % 4).backward()
    optimizer.step()
    dst.step()
    layer = dst.layers[1]
    moment = optimizer.state[layer.values]["exp_avg_sq"]
    channels = layer.pattern.positions() // (layer.pattern.shape[1] * layer.pattern.shape[2])
    for (first, end), _ in layer.regions:
        inside = (channels >= first) & (channels < end)
        grown = inside & (layer.values == 0)
        assert grown.any()
        torch.testing.assert_close(
            moment[grown], moment[inside & ~grown].mean().expand(int(grown.sum()))
        )


def half_trained(job: Job, source: str, folder: Path) -> None:
    """Leave what a killed process would leave of the job."""
    child = subprocess.Popen(
        [sys.executable, "-c", HALF, json.dumps([*job.key, job.options]), source, str(folder)],
        cwd=ROOT,
    )
    while not (folder / "checkpoint.pt").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()


HALF = """
import json, sys
from pathlib import Path
from benchmarks.paper.job import perform
from benchmarks.paper.plan import Job
perform(Job(*json.loads(sys.argv[1])), sys.argv[2], Path(sys.argv[3]))
"""


trained: list[int] = []  # epochs


def train_and_count(*arguments: Any, on_epoch: Any, **settings: Any) -> Any:
    def count(history: list[Any]) -> None:
        trained.append(len(history))
        on_epoch(history)

    return train(*arguments, on_epoch=count, **settings)


def test_a_beginning_of_something_else(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_archive(archive).sources["Long"]
    options = {"weights": "masked dense", "network": {"nf": 3, "depth": 2}}
    job = job_with(**options, recipe={"epochs": 100})
    half_trained(job, source, tmp_path / "half")
    before = (tmp_path / "half" / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"beginning of a training with recipe .*100.* not .*9"):
        perform(job_with(**options, recipe={"epochs": 9}), source, tmp_path / "half")
    assert (tmp_path / "half" / "checkpoint.pt").read_bytes() == before
    for damage in ("checkpoint.pt", "curve.json", "job.json", "progress"):
        shutil.copytree(tmp_path / "half", tmp_path / damage)
        (tmp_path / damage / damage).write_bytes(b"nan")
    calm = perform(job, source, tmp_path / "calm")
    assert len(calm["curve"]) > 5
    monkeypatch.setattr(training, "train", train_and_count)
    for begun in ("checkpoint.pt", "curve.json", "job.json", "progress", "half"):
        trained.clear()
        rough = perform(job, source, tmp_path / begun)
        assert without_times(rough) == without_times(calm), begun
        again = begun in ("progress", "half")  # in which nothing is that training needs, or all
        assert trained[0] > 1 if again else trained[0] == 1, "goes on, or begins again"
        assert trained[-1] == 100


def test_a_row_names_the_commits_that_trained(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = open_archive(archive).sources["Long"], tmp_path / "job"
    job = job_with(network={"nf": 3, "depth": 2}, recipe={"epochs": 100})
    half_trained(job, source, folder)
    monkeypatch.setattr(training, "CODE", "1234567")  # the next one
    row = perform(job, source, folder)
    assert row["machine"]["commit"] == f"{commit()} then 1234567"
    assert "gpu" not in row["machine"]
    assert row["train_seconds"] > 0
    assert row["curve"]


def test_what_a_gpu_began_has_no_times(archive: Path, tmp_path: Path) -> None:
    source, folder = open_archive(archive).sources["Long"], tmp_path / "job"
    job = job_with(network={"nf": 3, "depth": 2}, recipe={"epochs": 100})
    half_trained(job, source, folder)
    file = folder / training.JOB_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {"gpu": "H100"}))
    row = perform(job, source, folder)
    assert row["machine"]["gpu"] == "H100"
    assert row["train_seconds"] is row["predict_seconds"] is None


@pytest.mark.parametrize(
    "options",
    [{"series": "z-normalised"}, {"moments": "mean"}, {"network": {"nf": 3, "sparsity": 0.5}},
     {"recipe": {"epochs": 12, "grow": "gradient"}}],
    ids=str,
)  # fmt: skip
def test_each_option_changes_the_training(
    archive: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    source = open_archive(archive).sources["Long"]
    plain = {"network": {"nf": 3}, "recipe": {"epochs": 12}}
    rows = [
        perform(job_with(**(plain | more)), source, tmp_path / str(i))
        for i, more in enumerate(({}, {}, options))
    ]
    losses = [row["train_loss"] for row in rows]
    assert losses[0] == losses[1] != losses[2]


def test_the_data_are_what_the_job_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def read_this(source: str, *how: str) -> Any:
        asked[source] = how
        raise FileNotFoundError

    monkeypatch.setattr(training, "read", read_this)
    job = job_with(series="z-normalised", split="within subjects")
    with pytest.raises(FileNotFoundError):
        perform(job, "x.npz", tmp_path)
    assert asked == {"x.npz": ("z-normalised", "within subjects")}


def test_masks_move(archive: Path) -> None:
    """Until the share of the training that the recipe says, as patterns do."""
    data = read(open_archive(archive).sources["Long"])
    job = job_with(weights="masked dense", network={"nf": 3}, recipe={"epochs": 12})
    model = first_model(job.options, job.seed, Shape.of(data))
    layers = [layer for layer in model.modules() if isinstance(layer, PremaskedConv1d)]
    before = [layer.mask.clone() for layer in layers]
    train(
        model, data.X_train, data.y_train, job.recipe(), progress=False,
        scheduler_factory=scheduler_factory(job, job.recipe()),
    )  # fmt: skip
    assert not all(map(torch.equal, before, (layer.mask for layer in layers)))


@pytest.mark.parametrize("epochs", [1, 2, 12, 30, 39, 99, 100, 999, 1000])
def test_looks_at_the_test_set(epochs: int) -> None:
    recipe = job_with(recipe={"epochs": epochs}).recipe()
    found = looks(SHAPE, recipe)
    assert len(found) <= 25
    assert found == sorted(set(found))
    if epochs >= 99:
        assert found[0] <= 9, "the accuracy moves most in the beginning"
        assert epochs / 2 < found[-1] < epochs
    for epoch in found:
        assert epoch % recipe.update_every_epochs, "not right after an update"
        assert epoch % checkpoint_interval(recipe), "not where a kill would lose it"


def test_few_looks_at_a_large_test_set() -> None:
    recipe = job_with(recipe={"epochs": 1000}).recipe()
    assert looks(Shape(20, 3000, 1, 50, 2), recipe) == [34], "it costs as much as 50 epochs"
    assert len(looks(Shape(20, 300, 1, 50, 2), recipe)) <= 10
