"""The sweep of `make paper`: every job once, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.paper import sweep as sweeping
from benchmarks.paper.__main__ import main
from benchmarks.paper.archives import Shape, choose, members, open_archive, published, read
from benchmarks.paper.job import perform
from benchmarks.paper.networks import MomentsDST, multiply_adds
from benchmarks.paper.plan import DEFAULTS, Job, read_plan
from benchmarks.paper.sweep import ROWS_NAME, dask_pool, local_pool, read_rows, sweep
from benchmarks.paper.training import (
    checkpoint_interval,
    curve_interval,
    first_model,
    scheduler_factory,
)
from sparseconv.models import DSN
from sparseconv.training.loop import train

ROOT = Path(__file__).parents[2]
TIMES = {"train_seconds", "curve_seconds", "predict_seconds", "machine"}
PLAN = """
epochs = 12
seeds = [0]
[[run]]
name = "small"
sets = "all"
seeds = [0, 1]
network = {nf = 3, depth = 2}
[[run]]
name = "masked"
sets = {of = "all", cheapest = 1}
weights = "masked dense"
network = {nf = 3, depth = 2}
"""


def write_set(path: Path, length: int = 20, channels: int = 1) -> None:
    generator = np.random.default_rng(length)
    y = np.arange(24) % 2
    X = generator.normal(size=(24, channels, length)) + np.sin(np.arange(length)) * y[:, None, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, X_train=X[:14], y_train=y[:14], X_test=X[14:], y_test=y[14:])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    write_set(folder / "ucr" / "Short.npz", 12)
    write_set(folder / "Long.npz", 30, channels=2)
    return folder


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def facts(out: Path) -> list[dict[str, Any]]:
    rows = [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in read_rows(out / ROWS_NAME)
    ]
    return sorted(rows, key=lambda row: (row["run"], row["dataset"], row["seed"]))


def command(plan: Path, archive: Path, out: Path, *more: str) -> list[str]:
    words = ["run", str(plan), "--archive", str(archive), "--out", str(out)]
    return [*words, *(more or ("--workers", "2"))]


def test_each_job_once(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert main(command(plan, archive, out)) == 0
    printed = capsys.readouterr().out
    assert "5 jobs on 2 data sets" in printed
    assert "5 of 5:" in printed
    rows = facts(out)
    keys = [(row["run"], row["dataset"], row["seed"]) for row in rows]
    small = [("small", name, seed) for name in ("Long", "Short") for seed in (0, 1)]
    assert keys == [("masked", "Short", 0), *small]
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert row["epochs"] == 12
        assert row["params"] > 0
        assert row["macs"] > 0
    masked, sparse = rows[:2]
    assert masked["flops_paper"] < masked["macs"], "of the active weights; it computes with all"
    assert [sum(counts) for counts in sparse["kernels_by_size"]] == [27, 27]
    for layer in sparse["group_weights"]:
        assert np.array(layer).shape == (3, 39)
        assert max(map(max, layer)) == 100
        assert not any(layer[0][13:]), "outside of the group's region"
    assert sparse["itop_rate"] > 0.14  # the density
    assert [epoch for epoch, _ in sparse["curve"]] == [9]
    assert not list((out / "running").iterdir())
    before = (out / ROWS_NAME).read_bytes()
    assert main(command(plan, archive, out)) == 0
    assert (out / ROWS_NAME).read_bytes() == before, "nothing was left to do"


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


@pytest.mark.promise("P9")
def test_killed_at_random_instants(tmp_path: Path, archive: Path, campaign: Any) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 150"))
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    begin = time.monotonic()
    assert main(command(plan, archive, calm)) == 0
    whole = time.monotonic() - begin
    chance = random.Random(0)
    words = [sys.executable, "-m", "benchmarks.paper", *command(plan, archive, rough)]
    for _ in range(campaign(2, 10)):
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.2, 1.0) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
    rows = rough / ROWS_NAME
    rough.mkdir(exist_ok=True)
    with rows.open("a") as file:
        file.write('{"run": "small", "da')  # as a kill while writing leaves it
    assert main(command(plan, archive, rough)) == 0
    assert facts(rough) == facts(calm)


def test_a_killed_worker_costs_nothing(tmp_path: Path, archive: Path, plan: Path) -> None:
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 60"))
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)
    assert sweep(jobs, opened, calm, local_pool(2)) == {}
    killing = Killer(rough)
    assert sweep(jobs, opened, rough, killing.pool) == {}
    assert killing.pids
    assert facts(rough) == facts(calm)


class Killer:
    """A local pool, the first worker of which is killed while its job runs."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.pids: list[int] = []

    def pool(self) -> Any:
        import threading
        from contextlib import contextmanager

        @contextmanager
        def opened() -> Any:
            with local_pool(2)() as executor:
                if not self.pids:
                    threading.Thread(target=self.kill, args=(executor,)).start()
                yield executor

        return opened()

    def kill(self, executor: Any) -> None:
        while not list(self.out.glob("running/*/checkpoint.pt")):
            time.sleep(0.01)
        self.pids.append(min(executor._processes))
        os.kill(self.pids[0], signal.SIGKILL)


def test_a_job_that_kills_its_process_is_given_up(
    tmp_path: Path, archive: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "perform", deadly)
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)[:1]
    failed = sweep(jobs, opened, tmp_path / "out", local_pool(1))
    assert list(failed.values()) == ["its process was killed 4 times"]
    assert read_rows(tmp_path / "out" / ROWS_NAME) == []


def deadly(*_: Any) -> None:
    time.sleep(1.5)  # longer than the sweep takes to see it running
    os._exit(9)


def test_dask_with_a_killed_worker(tmp_path: Path, archive: Path, plan: Path) -> None:
    distributed = pytest.importorskip("distributed")
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 60"))
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    assert sweep(jobs, opened, calm, local_pool(2)) == {}
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as cluster:
        killing = DaskKiller(rough, cluster)
        failed = sweep(jobs, opened, rough, dask_pool(cluster.scheduler_address))
        killing.join()
    assert failed == {}
    assert facts(rough) == facts(calm)


class DaskKiller:
    def __init__(self, out: Path, cluster: Any) -> None:
        import threading

        self.out, self.cluster = out, cluster
        self.thread = threading.Thread(target=self.kill)
        self.thread.start()
        self.join = self.thread.join

    def kill(self) -> None:
        while not list(self.out.glob("running/*/checkpoint.pt")):
            time.sleep(0.01)
        nanny = next(iter(self.cluster.workers.values()))
        os.kill(nanny.pid, signal.SIGKILL)


def test_one_broken_file_among_good_ones(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "Broken.npz").write_bytes(b"no archive")
    out = tmp_path / "out"
    assert main(command(plan, archive, out)) == 1
    printed = capsys.readouterr()
    assert "left out: Broken" in printed.err
    assert "5 of 5 jobs done; 0 failed, 1 data sets could not be read" in printed.err
    assert len(facts(out)) == 5


def test_a_failing_job_leaves_the_others(
    tmp_path: Path,
    archive: Path,
    plan: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sweeping, "perform", failing)
    assert main(command(plan, archive, out)) == 1
    printed = capsys.readouterr()
    assert "FAILED: small, Long, seed 0: ValueError: the training loss became nan" in printed.err
    assert "3 of 5 jobs done; 2 failed" in printed.err
    assert len(facts(out)) == 3
    monkeypatch.undo()
    assert main(command(plan, archive, out)) == 0, "what failed is tried again"
    assert len(facts(out)) == 5


def failing(job: Job, source: str, folder: Path) -> Any:
    if job.dataset == "Long":
        raise ValueError("the training loss became nan")
    return perform(job, source, folder)


def test_two_sweeps_in_one_folder(tmp_path: Path, archive: Path, plan: Path) -> None:
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 2000"))
    out = tmp_path / "out"
    words = [sys.executable, "-m", "benchmarks.paper", *command(plan, archive, out)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not (out / "running").exists():
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(ValueError, match="another sweep is running in"):
            sweep([], open_archive(archive), out, local_pool(1))
    finally:
        process.kill()
        process.wait()


def test_rows_of_another_plan(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 1"))
    assert main(command(plan, archive, out)) == 0
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 2"))
    assert main(command(plan, archive, out)) == 2
    assert "recipe {'epochs': 1}, but the plan says {'epochs': 2}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (
            "epochs = 12",
            "epoch = 12",
            "unknown key epoch; known are base, cheapest, epochs, order, run, seeds",
        ),
        ("seeds = [0, 1]", "seed = 1", "run small: unknown key seed"),
        ("depth = 2", "layers = 2", r"unknown key network\.layers; known are backend, depth"),
        ("epochs = 12", "epochs = 0", "epochs must be >= 1"),
        ("epochs = 12", "epochs = ", "is not TOML"),
        ('sets = "all"', 'sets = "ucr86"', "names ucr86, which the archive does not hold"),
        ('sets = "all"', "sets = {without = []}", "a table with of"),
        ("cheapest = 1", 'cheapest = "one"', "cheapest must be a number"),
        ("cheapest = 1", 'cheaper_than = "Nile"', "'Nile', which the archive does not hold"),
        ('"masked dense"', '"dense"', "weights must be one of sparse, masked dense"),
        ('name = "masked"', 'name = "small"', "has other options above"),
        ('name = "small"', "", "run 1: it needs 'name'"),
        ('weights = "masked dense"', 'model = "DNS"', "model must be one of DSN, ResNet"),
        ("seeds = [0, 1]", "seeds = 2", "seeds must be a list of integers"),
        ("[[run]]", "[[runs]]", "unknown key runs"),
        ("seeds = [0]", "seeds = []", "seeds must be a list of integers, at least one"),
        ("seeds = [0]", "cheapest = 1", "cheapest is for a plan with base"),
        ("seeds = [0]", 'order = "cheap"', "order must be one of runs, seeds, sets"),
        ("seeds = [0]", "order = []", "order must be one of runs, seeds, sets"),
        ("seeds = [0, 1]", 'keep = "false"', "keep must be true or false"),
        ("seeds = [0, 1]", "recipe = 3", "recipe must be a table"),
        ("seeds = [0, 1]", 'model = ["DSN"]', "model must be one of"),
        ("seeds = [0]", 'base = "full"', "unknown key run; known are base"),
        ("cheapest = 1", 'without = ["Lnog"]', "names Lnog, which the archive does not hold"),
        ('"masked dense"', '"masked dense"\nmodel = "LITE"', "is for DSN, not for LITE"),
        ('"masked dense"', '"masked dense"\nmoments = "mean"', "have the moments that they have"),
        (
            'weights = "masked dense"',
            'recipe = {grow = "static"}\nmoments = "mean"',
            "needs weights that grow",
        ),
    ],
)
def test_plans_that_are_refused(plan: Path, archive: Path, old: str, new: str, match: str) -> None:
    plan.write_text(PLAN.replace(old, new))
    with pytest.raises(ValueError, match=match):
        read_plan(plan, open_archive(archive))


def test_plans_on_plans(plan: Path, archive: Path, tmp_path: Path) -> None:
    opened = open_archive(archive)
    small = tmp_path / "small.toml"
    small.write_text(f'base = "{plan}"\ncheapest = 1\n')
    jobs = read_plan(small, opened)
    assert {job.dataset for job in jobs} == {"Short"}
    assert {job.recipe().epochs for job in jobs} == {12}, "the base's"
    assert {job.seed for job in jobs if job.run == "small"} == {0, 1}
    small.write_text(f'base = "{plan}"\nepochs = 3\nseeds = [4]\n')
    assert {(job.recipe().epochs, job.seed) for job in read_plan(small, opened)} == {(3, 4)}
    for base in ('"demo"', "3", f'"{small}"'):
        small.write_text(f"base = {base}\n")
        with pytest.raises(ValueError, match=r"small\.toml cannot be used"):
            read_plan(small, opened)
    plan.write_text(PLAN.replace('"all"', '"ucr85"').replace('of = "ucr85"', 'of = "uea"'))
    with pytest.raises(ValueError, match="chooses no data set that the archive holds"):
        read_plan(plan, opened)


def test_the_order_of_jobs(plan: Path, archive: Path) -> None:
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)
    for order, by in (
        ("runs", lambda job: 0),
        ("seeds", lambda job: job.seed),
        ("sets", lambda job: (job.dataset == "Long", job.seed)),
    ):
        plan.write_text(f'order = "{order}"\n{PLAN}')
        assert read_plan(plan, opened) == sorted(jobs, key=by)


def test_networks_that_are_refused(
    plan: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.write_text(PLAN.replace("nf = 3", "nf = 0"))
    assert main(command(plan, archive, tmp_path / "out")) == 2
    assert (
        "the network of small, Short, seed 0 cannot be built: non-positive nf"
        in capsys.readouterr().err
    )


def test_series_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ts"
    folder.mkdir()
    for name, length in (("GunPoint", 24), ("Other", 12)):
        for part in ("TRAIN", "TEST"):
            lines = ["@problemName x", "@univariate true", "@equalLength true",
                     f"@seriesLength {length}", "@classLabel true a b", "@data"]  # fmt: skip
            for case in range(6):
                values = ",".join(str(case + t) for t in range(length))
                lines.append(f"{values}:{'ab'[case % 2]}")
            (folder / f"{name}_{part}.ts").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    opened = open_archive(Path("ts"))
    assert opened.broken == {}
    assert {name: shape.n_timepoints for name, shape in opened.shapes.items()} == {
        "GunPoint": 24, "Other": 12,
    }  # fmt: skip


def test_archives_that_are_refused(tmp_path: Path, plan: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; name a folder"):
        open_archive(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data set; expected"):
        open_archive(tmp_path / "empty")
    with pytest.raises(ValueError, match="is not a folder"):
        open_archive(plan)
    for folder in "ab":
        write_set(tmp_path / "twice" / folder / "Same.npz")
    with pytest.raises(ValueError, match="holds Same twice"):
        open_archive(tmp_path / "twice")
    assert main(["run", "no such plan"]) == 2


def test_the_plans_that_come_along() -> None:
    archive = open_archive(None)
    demo, full = read_plan("demo", archive), read_plan("full", archive)
    assert {job.run for job in demo} == {job.run for job in full}
    assert {job.recipe().epochs for job in demo} < {10, 20, 30, 50}
    assert {job.seed for job in demo} == {0}
    assert {job.recipe().epochs for job in full} == {1000}  # no set has fewer


def test_sets_are_chosen() -> None:
    archive = open_archive(None)
    assert choose(archive, "ucr85") == ["ItalyPowerDemand", "GunPoint", "ArrowHead", "OSULeaf"]
    assert choose(archive, {"of": "ucr85", "cheaper_than": "OSULeaf", "without": ["GunPoint"]}) == [
        "ItalyPowerDemand",
        "ArrowHead",
    ]
    assert choose(archive, {"of": "all", "cheapest": 1}) == ["ItalyPowerDemand"]
    assert [len(members(name)) for name in ("ucr85", "ucr2018", "uea")] == [85, 43, 30]
    assert set(archive.sources) <= published().keys()


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
    with pytest.raises(ValueError, match="GunPoint names no subjects"):
        read("GunPoint", split="within subjects")


def job_with(**options: Any) -> Job:
    small = {"network": {"nf": 4}, "recipe": {"epochs": 1}}
    return Job("x", "y", 0, {**DEFAULTS, **small, **options})


SHAPE = Shape(20, 20, 3, 50, 4)


def test_multiply_adds() -> None:
    model = first_model(job_with(), SHAPE)
    assert isinstance(model, DSN)
    assert multiply_adds(model, SHAPE) == model.cost(50).macs_executed
    masked = first_model(job_with(weights="masked dense"), SHAPE)
    assert multiply_adds(masked, SHAPE) == model.cost(50).macs_dense
    assert masked.training


@pytest.mark.parametrize("moments", ["mean", "corrected"])
def test_moments_of_grown_weights(moments: str) -> None:
    torch.manual_seed(0)
    model = first_model(job_with(), SHAPE)
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
    model = first_model(job_with(), SHAPE)
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


@pytest.mark.parametrize("line", ['{"run": 1}', "3", "nothing", '{"run": "a", "options": 3}'])
def test_rows_that_are_damaged(tmp_path: Path, line: str) -> None:
    path = tmp_path / ROWS_NAME
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1, is not a row"):
        read_rows(path)


def test_rows_of_other_data(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 1"))
    assert main(command(plan, archive, out)) == 0
    write_set(archive / "ucr" / "Short.npz", 13)
    assert main(command(plan, archive, out)) == 2
    assert "'n_timepoints': 13" in capsys.readouterr().err


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


def test_a_beginning_of_something_else(archive: Path, tmp_path: Path) -> None:
    source = open_archive(archive).sources["Long"]
    options = {"weights": "masked dense", "recipe": {"epochs": 200}}
    job = job_with(**options, network={"nf": 3, "depth": 2})
    other = job_with(**options, network={"nf": 3, "depth": 2, "sparsity": 0.5})
    half_trained(other, source, tmp_path / "other options")
    half_trained(job, source, tmp_path / "half")
    for damage in ("checkpoint.pt", "curve.json", "progress"):
        shutil.copytree(tmp_path / "half", tmp_path / damage)
        (tmp_path / damage / damage).write_bytes(b"nan")
    calm = perform(job, source, tmp_path / "calm")
    assert len(calm["curve"]) > 5
    for begun in ("other options", "checkpoint.pt", "curve.json", "progress", "half"):
        rough = perform(job, source, tmp_path / begun)
        assert {k: v for k, v in rough.items() if k not in TIMES} == {
            k: v for k, v in calm.items() if k not in TIMES
        }, begun


@pytest.mark.parametrize("epochs", [1, 2, 12, 30, 39, 99, 100, 999, 1000])
def test_looks_at_the_test_set(epochs: int) -> None:
    recipe = job_with(recipe={"epochs": epochs}).recipe()
    every = curve_interval(SHAPE, recipe)
    looks = [epoch for epoch in range(1, epochs) if (epoch + 1) % every == 0]
    assert len(looks) <= 25
    for epoch in looks:
        assert epoch % recipe.update_every_epochs, "not right after an update"
        assert epoch % checkpoint_interval(recipe), "not where a kill would lose it"


def test_names_that_look_alike(tmp_path: Path) -> None:
    names = ("S = 80 %", "S = 80 _", "S = 80 ?", "x" * 300, "x" * 301)
    jobs = [Job(name, "a", 0, DEFAULTS) for name in names]
    jobs += [Job("a", "b-c", 0, DEFAULTS), Job("a-b", "c", 0, DEFAULTS)]
    folders = {sweeping._folder(tmp_path, job) for job in jobs}
    assert len(folders) == len(jobs)
    for folder in folders:
        folder.mkdir(parents=True)


def test_neighbours_of_a_killer_are_innocent(
    tmp_path: Path, archive: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "perform", killer)
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)
    failed = sweep(jobs, opened, tmp_path / "out", local_pool(2))
    assert list(failed) == ["masked, Short, seed 0"]
    assert len(read_rows(tmp_path / "out" / ROWS_NAME)) == 4


def killer(job: Job, source: str, folder: Path) -> Any:
    if job.run == "masked":
        time.sleep(1.2)
        os._exit(9)
    return perform(job, source, folder)
