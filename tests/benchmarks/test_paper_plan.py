"""What a plan names, and one job of it: its row, its moments, and going on where it was killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_plan import job_with, without_times

from benchmarks.paper import training
from benchmarks.paper.archives import Shape, choose, members, open_archive, published, read
from benchmarks.paper.networks import MomentsDST, first_model
from benchmarks.paper.plan import Job, read_plan
from benchmarks.paper.sweep import perform
from benchmarks.paper.training import looks, scheduler_factory
from benchmarks.recording import commit
from sparseconv.measure.machine import threads
from sparseconv.models import DSN
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe


def test_a_set_is_post_hoc_unless_another_line_names_it(plan: Path, archive: Path) -> None:
    line = "[[run]]\nname = 'a'\nsets = 'Long'\n"
    chosen = line.replace("'Long'", "'all'") + "post_hoc = true\n"
    for text in (chosen + line, line + chosen):
        plan.write_text(text)
        jobs = read_plan(plan, open_archive(archive))
        assert {job.dataset: job.post_hoc for job in jobs} == {"Short": True, "Long": False}


def test_sets_are_chosen() -> None:
    archive = open_archive(None)
    assert choose(archive, "ucr85")[0] == ["ItalyPowerDemand", "GunPoint", "ArrowHead", "OSULeaf"]
    cheap = {"of": "ucr85", "cheapest": 2, "without": ["GunPoint"]}
    assert choose(archive, cheap)[0] == ["ItalyPowerDemand", "ArrowHead"]
    assert choose(archive, {"of": "all", "without": "ucr85"})[0] == [
        *choose(archive, "uea")[0], *choose(archive, "ucr2018")[0],
    ]  # fmt: skip
    assert choose(archive, {"of": "all", "cheapest": 1})[0] == ["ItalyPowerDemand"]
    assert [len(members(name)) for name in ("ucr85", "ucr2018", "uea")] == [85, 43, 30]
    assert set(archive.sources) <= set(published().index)


def test_z_normalised(archive: Path) -> None:
    source = open_archive(archive).sources["Long"]
    raw, scaled = read(source), read(source, "z-normalised")
    np.testing.assert_allclose(scaled.X_train.mean((0, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.X_train.std((0, 2)), 1, rtol=1e-5)
    mean, spread = (getattr(raw.X_train, f)((0, 2), keepdims=True) for f in ("mean", "std"))
    np.testing.assert_allclose(scaled.X_test, (raw.X_test - mean) / spread, rtol=1e-4, atol=1e-5)


def test_split_within_subjects(tmp_path: Path) -> None:
    X, y = np.arange(16.0).reshape(16, 1, 1) * np.ones(5), np.arange(16) % 2
    facts = {"subject": np.arange(16) // 8, "segment": np.arange(16)[::-1]}
    halves = {
        f"{name}_{part}": array[chosen]
        for name, array in (("X", X), ("y", y), *facts.items())
        for part, chosen in (("train", slice(8)), ("test", slice(8, None)))
    }
    np.savez(tmp_path / "Sports.npz", **halves)
    data = read(str(tmp_path / "Sports.npz"), split="within subjects")
    # The later half of each subject's cases has the first segments.
    assert sorted(data.X_train[:, 0, 0]) == [4, 5, 6, 7, 12, 13, 14, 15]
    assert (data.y_train == data.X_train[:, 0, 0] % 2).all()
    assert sorted(data.X_test[:, 0, 0]) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_the_plans_that_come_along() -> None:
    archive = open_archive(None)
    plans = {name: read_plan(name, archive) for name in ("demo", "full", "filters", "pocket")}
    assert {job.run for job in plans["demo"]} == {job.run for job in plans["full"]}
    assert {job.recipe().epochs for job in plans["demo"]} == {1, 10}, "docs/paper.md says so"
    for job in plans["demo"]:
        if job.run in ("DSN", "masked dense"):
            assert looks(archive.shapes[job.dataset], job.recipe()), "or question (a) has no figure"
            assert job.recipe().update_every_epochs < 10, "or no pattern changes"


SHAPE = Shape(20, 20, 3, 50, 4)


def test_an_ensemble_is_the_mean_of_networks_trained_by_themselves(
    archive: Path, tmp_path: Path
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
            losses.append(train(models[-1], data.X_train, data.y_train, own, verbose=False))
    with torch.no_grad():
        proba = sum(model(X).exp() for model in models) / 2
    assert row["accuracy"] == (proba.argmax(1) == y).double().mean().item()
    assert row["test_loss"] == pytest.approx(float(-proba[range(len(y)), y].log().mean()))
    assert row["train_loss"] == pytest.approx(sum(found.best_loss for found in losses) / 2)
    for key, one in (("params", "params"), ("macs", "macs_executed"), ("flops_paper",) * 2):
        assert row[key] == sum(getattr(model.cost(30), one) for model in models)
    assert row["curve"] == []
    (tmp_path / "job" / "1" / "checkpoint.pt").unlink()
    assert without_times(perform(job, source, tmp_path / "job")) == without_times(row)


@pytest.mark.parametrize("moments", ["mean", "corrected"])
def test_moments_of_grown_weights(moments: str) -> None:
    torch.manual_seed(0)
    model = first_model(job_with().options, 0, SHAPE)
    make = scheduler_factory(job_with(moments=moments), job_with().recipe())
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
            moment = state["exp_avg_sq"]
            positions = layer.pattern.positions()
            channels = positions // (layer.pattern.shape[1] * layer.pattern.shape[2])
            for (first, end), _ in layer.regions if moments == "mean" else ():
                inside = (channels >= first) & (channels < end)
                mean = moment[inside & ~grown].mean()
                wanted = mean.expand(int((inside & grown).sum()))
                torch.testing.assert_close(moment[inside & grown], wanted)
            assert moments == "mean" or (moment[grown] == 0).all()
    other = make(model, optimizer, 3, 100, 100)
    other.load_state_dict(dst.state_dict())
    assert all(map(torch.equal, other.ages, dst.ages))


def test_what_was_begun_goes_on(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same facts; the row names the commits and the GPU that trained it."""
    source, half = open_archive(archive).sources["Long"], tmp_path / "half"
    job = job_with(weights="masked dense", network={"nf": 3, "depth": 2}, recipe={"epochs": 40})
    calm = perform(job, source, tmp_path / "calm")
    assert len(calm["curve"]) == 3
    trained = []

    def stopping(*arguments: Any, on_epoch: Any, **settings: Any) -> Any:
        def count(history: list[Any]) -> None:
            trained.append(len(history))
            on_epoch(history)
            if len(trained) == 20:
                raise KeyboardInterrupt

        return train(*arguments, on_epoch=count, **settings)

    monkeypatch.setattr(training, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        perform(job, source, half)
    monkeypatch.setattr(training, "CODE", "1234567")  # the next one
    shutil.copytree(half, tmp_path / "gpu")
    row = perform(job, source, half)
    assert trained == [*range(1, 21), *range(trained[20], 41)]
    assert trained[20] in (19, 20, 21), "two epochs are done again, or less"
    assert without_times(row) == without_times(calm)
    assert row["machine"]["commit"] == f"{commit()} then 1234567"
    file = tmp_path / "gpu" / training.JOB_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {"gpus": ["H100"]}))
    row = perform(job, source, tmp_path / "gpu")
    assert row["machine"]["gpu"] == "H100"
    assert row["train_seconds"] is row["predict_seconds"] is None
