"""The sweep of `make paper`: every job once, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_plan import PLAN, ROOT, command, facts, write_set
from tqdm import tqdm

from benchmarks.paper import sweep as sweeping
from benchmarks.paper.__main__ import main
from benchmarks.paper.archives import open_archive
from benchmarks.paper.job import perform
from benchmarks.paper.networks import multiply_adds
from benchmarks.paper.plan import DEFAULTS, Job, read_plan
from benchmarks.paper.rows import ROWS_NAME, read_rows
from benchmarks.paper.sweep import local_pool, sweep
from benchmarks.paper.training import first_model

SETS = ("Short", "Long")


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


def test_one_broken_file_among_good_ones(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "Broken.npz").write_bytes(b"no archive")
    out = tmp_path / "out"
    assert main(command(plan, archive, out)) == 1
    printed = capsys.readouterr()
    assert "left out: Broken" in printed.err
    assert "5 of 5 jobs done; 0 failed, 1 data set could not be read (Broken)" in printed.err
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


def test_a_row_that_could_not_be_read_again_is_none(
    tmp_path: Path,
    archive: Path,
    plan: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sweeping, "perform", unreadable)
    assert main(command(plan, archive, out)) == 1
    said = "FAILED: small, Long, seed 0: its row is of no use: it has no usable accuracy (nan)"
    assert said in capsys.readouterr().err
    assert len(facts(out)) == 3


def unreadable(job: Job, source: str, folder: Path, device: str) -> Any:
    row = perform(job, source, folder, device)
    return row | {"accuracy": float("nan")} if job.dataset == "Long" else row


def failing(job: Job, source: str, folder: Path, device: str) -> Any:
    if job.dataset == "Long":
        raise ValueError("the training loss became nan")
    return perform(job, source, folder, device)


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


def test_rows_of_another_plan_or_of_other_data(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 1"))
    assert main(command(plan, archive, out)) == 0
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 2"))
    assert main(command(plan, archive, out)) == 2
    assert "recipe {'epochs': 1}, but the plan says {'epochs': 2}" in capsys.readouterr().err
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 1"))
    write_set(archive / "ucr" / "Short.npz", 13)
    assert main(command(plan, archive, out)) == 2
    assert "'n_timepoints': 13" in capsys.readouterr().err
    write_set(archive / "ucr" / "Short.npz", 12, shift=1e-3)
    assert main(command(plan, archive, out)) == 2
    assert "rows of Short with other values than the archive's" in capsys.readouterr().err


def test_a_run_has_the_same_options_on_all_sets(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a table would show the mean of different things under one name."""
    epochs = "epochs = {}\n[[run]]\nname = 'a'\nsets = '{}'\nnetwork = {{nf = 3, depth = 2}}\n"
    out = tmp_path / "out"
    plan.write_text(epochs.format(1, "Short"))
    assert main(command(plan, archive, out)) == 0
    plan.write_text(epochs.format(2, "Long"))
    capsys.readouterr()
    assert main(command(plan, archive, out)) == 2
    assert "has a with recipe {'epochs': 1}, but the plan says" in capsys.readouterr().err
    plan.write_text(epochs.format(2, "Long"))
    assert main(command(plan, archive, tmp_path / "other")) == 0
    with (out / ROWS_NAME).open("a") as file:
        file.write((tmp_path / "other" / ROWS_NAME).read_text())
    assert main(["report", str(out)]) == 2
    said = "the run a with recipe {'epochs': 1} on Short and {'epochs': 2} on Long; give one of"
    assert said in capsys.readouterr().err


def test_keeping_what_was_removed(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = PLAN.replace("epochs = 12", "epochs = 1")
    for keep in ("false", "true"):
        plan.write_text(short.replace("seeds = [0, 1]", f"keep = {keep}"))
        assert main(command(plan, archive, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "small, Long, seed 0: its folder was not kept when it was trained; for one" in printed


def test_what_was_kept_stays(tmp_path: Path, archive: Path, plan: Path) -> None:
    short = PLAN.replace("epochs = 12", "epochs = 1")
    for keep in ("true", "false"):
        plan.write_text(short.replace("seeds = [0, 1]", f"keep = {keep}"))
        assert main(command(plan, archive, tmp_path / "out")) == 0
        assert len(list((tmp_path / "out" / "running").glob("small-*/checkpoint.pt"))) == 2


def test_a_picked_set_is_marked_in_its_row(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless another line of the plan, which did not pick it, names the same network."""
    out = tmp_path / "out"
    picked = PLAN.replace("epochs = 12", "epochs = 1").replace("seeds = [0, 1]", "picked = true")
    plan.write_text(picked)
    assert main(command(plan, archive, out)) == 0
    found = {(row["run"], row["dataset"]): row.get("picked", False) for row in facts(out)}
    assert found == {("masked", "Short"): False} | dict.fromkeys(
        (("small", "Short"), ("small", "Long")), True
    )
    again = picked.partition("[[run]]")[2].replace("picked = true", "").replace('"all"', '"Long"')
    plan.write_text(f"{picked}\n[[run]]{again.partition('[[run]]')[0]}")
    assert main(command(plan, archive, out)) == 2
    said = (
        'has small, Long, seed 0 with picked True, but the plan says False; remove "picked": true'
    )
    assert f"{said} from these lines, or change the plan" in capsys.readouterr().err
    rows = (out / ROWS_NAME).read_text().splitlines()
    changed = [row.replace('"picked": true, ', "") if '"Long"' in row else row for row in rows]
    (out / ROWS_NAME).write_text("\n".join(changed) + "\n")
    assert main(command(plan, archive, out)) == 0, "either order of the lines"


def test_arguments_that_cannot_be(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--workers", "two"], "--workers: must be a whole number, at least 1, but got 'two'"),
        (["--workers", "0"], "--workers: must be a whole number, at least 1, but got '0'"),
        (["--scheduler", ""], "--scheduler: is empty"),
        (["--out", ""], "--out: is empty"),
    ):
        with pytest.raises(SystemExit):
            main(["run", str(plan), *words])
        assert said in capsys.readouterr().err


def test_files_that_cannot_be_used(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lock").mkdir()
    assert main(command(plan, archive, tmp_path)) == 2
    assert f"error: {tmp_path / 'lock'} cannot be used (Is a directory)" in capsys.readouterr().err


def test_folders_that_cannot_be(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (plan, plan / "x", Path("/proc/nothing")):
        assert main(command(plan, archive, out)) == 2
        assert f"--out must name a folder, but {out} cannot be one" in capsys.readouterr().err


def test_networks_that_are_refused(
    plan: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.write_text(PLAN.replace("nf = 3", "nf = 0"))
    assert main(command(plan, archive, tmp_path / "out")) == 2
    assert "small, Short, seed 0 cannot be run: nf must be at least 1" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(
    plan: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(plan, archive, tmp_path / "out"), "--device", "cuda"]) == 2
    assert "--device cuda needs a GPU, but torch sees none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"model": "ROCKET"}, {"pruning": [{"name": "half"}]}], ids=str)
def test_what_only_a_cpu_runs(options: dict[str, Any], archive: Path, tmp_path: Path) -> None:
    job = Job("small", "Short", 0, DEFAULTS | options)
    with pytest.raises(ValueError, match=r"small, Short, seed 0 cannot run on a GPU.*--device cpu"):
        sweep([job], open_archive(archive), tmp_path / "out", local_pool(1), "cuda")
    assert not (tmp_path / "out" / "running").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_rows_from_a_gpu(plan: Path, archive: Path, tmp_path: Path) -> None:
    for moments in ("mean", "corrected"):
        more = f'[[run]]\nname = "{moments}"\nsets = ["Short"]\nmoments = "{moments}"\n'
        plan.write_text(f"{plan.read_text()}{more}network = {{nf = 3, depth = 2}}\n")
    out = tmp_path / "out"
    assert main([*command(plan, archive, out), "--device", "cuda"]) == 0
    rows = read_rows(out / ROWS_NAME)
    assert len(rows) == 7
    for row in rows:
        assert row["train_seconds"] is row["predict_seconds"] is None
        assert not row["curve"]
        assert torch.cuda.get_device_name() == row["machine"]["gpu"]


@pytest.mark.parametrize("line", ['{"run": 1}', "3", "nothing", '{"run": "a", "options": 3}'])
def test_rows_that_are_damaged(tmp_path: Path, line: str) -> None:
    path = tmp_path / ROWS_NAME
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1, is not a row"):
        read_rows(path)


def test_rows_that_were_edited(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 1"))
    words = command(plan, archive, tmp_path)
    assert main(words) == 0
    path = tmp_path / ROWS_NAME
    lines = path.read_text().splitlines(True)
    for changes, said in (
        ({"accuracy": 42}, "accuracy"),
        ({"accuracy": float("nan")}, "accuracy"),
        ({"machine": {"cpu": "x"}}, "machine"),
        ({"train_seconds": "1"}, "train_seconds"),
        ({"curve": [[1, 2]], "curve_seconds": [1.0]}, "curve"),
        ({"options": {"model": "LITE", "pruning": [{"name": "a"}]}}, "variants"),
        ({"options": {"model": "ROCKET"}}, "draw_seconds .*, variants"),
    ):
        path.write_text(json.dumps(json.loads(lines[0]) | changes) + "\n")
        with pytest.raises(ValueError, match=f"line 1, is not a row: it has no usable .*{said}"):
            read_rows(path)
    path.write_text("".join([*lines, lines[0]]))
    for doubled in (["report", str(tmp_path)], words):
        assert main(doubled) == 2
        assert "2 times; remove all but one line" in capsys.readouterr().err


def test_rows_of_different_data_under_one_name(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.write_text(PLAN.replace("epochs = 12", "epochs = 1"))
    assert main(command(plan, archive, tmp_path)) == 0
    path = tmp_path / ROWS_NAME
    first, *others = map(json.loads, path.read_text().splitlines())
    for key, value in (("n_test", 99), ("data", "0123456789abcdef")):
        rows = [first | {key: value}, *others]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert main(["report", str(tmp_path)]) == 2
        said = f"rows of {first['dataset']} with {key} {value!r} and {first[key]!r}; keep those"
        assert said in capsys.readouterr().err
    within = first | {"run": "within", "n_test": 99}
    within["options"] = first["options"] | {"split": "within subjects"}
    path.write_text("".join(json.dumps(row) + "\n" for row in [first, within]))
    assert len(read_rows(path)) == 2, "of which each half is the test set"


def test_progress_is_of_multiply_adds(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)
    costs = sweeping._costs(jobs, opened)
    small = {(dataset, seed): costs["small", dataset, seed] for dataset in SETS for seed in (0, 1)}
    assert small["Long", 0] == small["Long", 1]
    each = [first_model(jobs[0].options, 0, opened.shapes[dataset]) for dataset in SETS]
    # Of each of 12 epochs three passes over 14 series, and one over the 10 of the test set.
    assert [small[dataset, 0] for dataset in SETS] == [
        multiply_adds(model, opened.shapes[dataset]) * (12 * 3 * 14 + 10)
        for dataset, model in zip(SETS, each, strict=True)
    ]
    assert costs["masked", "Short", 0] > 2 * small["Short", 0], "it computes with all weights"
    done, *others = jobs
    todo = {job.key: job for job in others}
    with sweeping._Progress(jobs, costs, todo, tmp_path) as progress:
        assert progress.before == costs[done.key]
        running = others[0]
        folder = sweeping._folder(tmp_path, running)
        folder.mkdir(parents=True)
        (folder / "progress").write_text("0.5")
        half = costs[done.key] + costs[running.key] / 2
        assert progress._done() == pytest.approx(half, abs=2)
        progress.begin -= 60  # seconds ago
        progress.line("an event")
        progress.update([running.key])
        progress.said -= 301
        progress.update([running.key])
        progress.update([running.key])
    share = (half - costs[done.key]) / (sum(costs.values()) - costs[done.key])
    left = tqdm.format_interval(60 / share - 60)
    assert capsys.readouterr().out.splitlines() == [
        f"2 of 5: an event; about {left} left",
        f"2 of 5 done; about {left} left; now {running}: 50%",
    ], "without a terminal a line now and then is what there is"


def test_names_that_look_alike(tmp_path: Path) -> None:
    names = ("S = 80 %", "S = 80 _", "S = 80 ?", "x" * 300, "x" * 301)
    jobs = [Job(name, "a", 0, DEFAULTS) for name in names]
    jobs += [Job("a", "b-c", 0, DEFAULTS), Job("a-b", "c", 0, DEFAULTS)]
    folders = {sweeping._folder(tmp_path, job) for job in jobs}
    assert len(folders) == len(jobs)
    for folder in folders:
        folder.mkdir(parents=True)
