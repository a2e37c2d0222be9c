"""The sweep of `make paper`, each job once, however often it is killed; and its report."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import sem, wilcoxon
from small_plan import PLAN, ROOT, command, facts, made

from benchmarks.paper import report
from benchmarks.paper.__main__ import main
from benchmarks.paper.archives import Archive, members, open_archive, published_accuracy
from benchmarks.paper.comparison import holm, interval, versus
from benchmarks.paper.plan import Job, read_plan
from benchmarks.paper.rows import ROWS_NAME
from benchmarks.paper.sweep import dask_pool, local_pool, sweep
from benchmarks.recording import add_line

pytestmark = pytest.mark.usefixtures("in_this_process")
SETS = members("ucr85")[:6]


def test_each_job_once(
    tmp_path: Path, archive: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    plan.write_text(f"{PLAN}post_hoc = true\n")
    (archive / "Broken.npz").write_bytes(b"no archive")
    assert main(command(plan, archive, out)) == 1
    assert "left out: Broken" in capsys.readouterr().err
    rows = facts(out)
    keys = [(row["run"], row["dataset"], row["seed"]) for row in rows]
    small = [("small", name, seed) for name in ("Long", "Short") for seed in (0, 1)]
    assert keys == [("masked", "Short", 0), *small]
    masked, sparse = rows[:2]
    assert masked["flops_paper"] < masked["macs"], "of the active weights; it computes with all"
    assert [sum(counts) for counts in sparse["kernels_by_size"]] == [27, 27]
    for layer in sparse["group_weights"]:
        assert max(map(max, layer)) == 100
        assert not any(layer[0][13:]), "outside of the group's region"
    assert sparse["itop_rate"] > 0.14  # the density
    assert [epoch for epoch, _ in sparse["curve"]] == [9]
    assert not list((out / "running").iterdir())
    assert [row["post_hoc"] for row in rows] == [True, False, False, False, False]
    (archive / "Broken.npz").unlink()
    before = (out / ROWS_NAME).read_bytes()
    assert main(command(plan, archive, out)) == 0
    assert (out / ROWS_NAME).read_bytes() == before, "nothing was left to do"


def test_rows_of_another_plan_or_of_other_data(tmp_path: Path, archive: Path, plan: Path) -> None:
    opened = open_archive(archive)
    jobs = read_plan(plan, opened)
    job = jobs[0]
    row = {"run": job.run, "dataset": job.dataset, "seed": job.seed, "options": job.options}
    shorter = {"options": row["options"] | {"recipe": {"epochs": 1}}}
    for change, said in (
        (shorter, "has small with recipe {'epochs': 1}, not {'epochs': 12} as in the"),
        ({"data": "another"}, "rows of Short whose values differ from the archive's"),
    ):
        add_line(tmp_path / ROWS_NAME, row | change)  # in the place of the one before
        with pytest.raises(ValueError, match=re.escape(said)):
            sweep(jobs, opened, tmp_path, local_pool(1))


def sweep_here(jobs: list[Job], archive: Archive, out: Path) -> dict[str, str]:
    """Let the jobs of a sweep run in this process."""
    return sweep(jobs, archive, out, ThreadPoolExecutor(1))


def wait_for_a_checkpoint(out: Path, since: int) -> None:
    """Return as soon as one was written after this time, in nanoseconds."""
    deadline = time.monotonic() + 120
    while not any(p.stat().st_mtime_ns > since for p in out.glob("running/*/checkpoint.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.promise("P9")
def test_a_killed_sweep_goes_on(tmp_path: Path, archive: Path, plan: Path, campaign: Any) -> None:
    opened = open_archive(archive)
    jobs, out = read_plan(plan, opened), tmp_path / "out"
    words = [sys.executable, "-m", "benchmarks.paper", *command(plan, archive, out)]
    fork = multiprocessing.get_context("fork")
    for by_command in (False, *[True] * campaign(0, 10)):
        if by_command:
            process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        else:  # which starts at once
            process = fork.Process(target=sweep_here, args=(jobs, opened, out))
            process.start()
        wait_for_a_checkpoint(out, time.time_ns())
        process.kill()  # its workers end by themselves
        process.wait() if by_command else process.join()
        assert len(facts(out)) < 5
    with (out / ROWS_NAME).open("a") as file:
        file.write('{"run": "small", "da')  # as a kill while writing leaves it
    assert sweep_here(jobs, opened, out) == {}
    assert sweep_here(jobs, opened, tmp_path / "calm") == {}
    assert facts(out) == facts(tmp_path / "calm")


def test_dask(tmp_path: Path, archive: Path, plan: Path) -> None:
    """By a worker that is a thread."""
    distributed = pytest.importorskip("distributed")
    settings = {"processes": False, "threads_per_worker": 1, "dashboard_address": None}
    opened, out = open_archive(archive), tmp_path / "out"
    jobs = read_plan(plan, opened)[-1:]
    with distributed.LocalCluster(n_workers=1, **settings) as cluster:
        assert sweep(jobs, opened, out, dask_pool(cluster.scheduler_address)) == {}
    assert sweep_here(jobs, opened, tmp_path / "calm") == {}
    assert facts(out) == facts(tmp_path / "calm")


def test_post_hoc_sets_count_in_no_comparison(tmp_path: Path) -> None:
    rows = [made("DSN", name, accuracy=0.5) for name in SETS]
    grown = [made("gradient growth", n, accuracy=0.9, post_hoc=True) for n in SETS[:3]]
    report.write_report([*rows, *grown], tmp_path)
    for shown in ("behind", "runs"):
        assert "gradient growth" in (tmp_path / f"{shown}.md").read_text()
    assert not (tmp_path / "figure-7.md").exists()
    grown[0]["post_hoc"] = grown[2]["post_hoc"] = False
    report.write_report([*rows, *grown], tmp_path)
    (*_, cells) = (tmp_path / "figure-7.md").read_text().splitlines()
    assert cells.split("|")[2].strip() == "2, 2"


def test_versus_published() -> None:
    theirs = published_accuracy("ResNet")
    steps = np.array([3, 1, 0, 0.004, -1, -2])
    ours = theirs[SETS] + steps
    found = versus(ours, theirs)
    assert (found.wins, found.ties, found.losses, found.sets) == (2, 2, 2, 6)
    assert found.difference == pytest.approx(steps.mean())
    # Student's t: with five degrees of freedom, 95 % lie within 2.5706 deviations.
    low, high = found.interval
    assert (high - low) / 2 == pytest.approx(2.5706 * sem(steps), rel=1e-4)
    assert interval([2.0, 2.0]) == (2, 2)
    assert found.p == pytest.approx(wilcoxon([3, 1, 0, 0, -1, -2]).pvalue)
    assert versus(ours, theirs[[]]) is None
    noisy = 80.0 + pd.Series([-1, -1, 1, 0, 1, 1]) / 3
    even = versus((noisy + noisy + noisy) / 3 + 1e-14, 0 * noisy + 80.0)
    assert even.p == wilcoxon([-1, -1, 1, 0, 1, 1]).pvalue, "the noise of means is not a difference"
    same = versus(ours, ours)
    assert (same.ties, same.p) == (6, None)
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, np.nan, 0.06, 0.06], nan_ok=True)
    assert holm([0.6, 0.9]) == [1, 1]
    one = versus(pd.Series({"a": 90.0}), pd.Series({"a": 85.0}))
    assert (one.wins, one.interval, one.p) == (1, None, None), "one set has no spread"
