"""What a plan names: data sets, series, jobs and their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.paper.archives import Shape, choose, members, open_archive, published, read
from benchmarks.paper.plan import read_plan
from benchmarks.paper.training import looks


def test_a_set_is_post_hoc_unless_another_line_names_it(plan: Path, archive: Path) -> None:
    line = "[[run]]\nname = 'a'\nsets = 'Long'\n"
    chosen = line.replace("'Long'", "'all'") + "post_hoc = true\n"
    for text in (chosen + line, line + chosen):
        plan.write_text(text)
        jobs = read_plan(plan, open_archive(archive))
        assert {job.dataset: job.post_hoc for job in jobs} == {"Short": True, "Long": False}


def test_series_files(tmp_path: Path) -> None:
    head = "@problemName x\n@univariate true\n@equalLength true\n@seriesLength 12\n"
    head += "@classLabel true a b\n@data\n"
    cases = [f"{','.join(str(case + t) for t in range(12))}:{'ab'[case % 2]}" for case in range(6)]
    for name in ("GunPoint_TRAIN", "GunPoint_TEST", "Other_TRAIN"):
        (tmp_path / f"{name}.ts").write_text(head + "\n".join(cases) + "\n")
    opened = open_archive(tmp_path)
    assert opened.shapes["GunPoint"].n_timepoints == 12, "not the set that aeon brings along"
    assert "Other_TEST.ts" in opened.broken["Other"]
    for split in ("TRAIN", "TEST"):  # as the archive of 2018 and that of 2015
        for name, mark in ((f"deep/New_{split}.tsv", "\t"), (f"deep/Old_{split}", ",")):
            (tmp_path / "deep").mkdir(exist_ok=True)
            (tmp_path / name).write_text(f"1{mark}2{mark}3\n2{mark}4{mark}5\n")
    shapes = open_archive(tmp_path).shapes
    assert shapes["New"] == shapes["Old"] == Shape(2, 2, 1, 2, 2)


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
