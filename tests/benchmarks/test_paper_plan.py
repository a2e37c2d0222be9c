"""What a plan names: data sets, series, jobs and their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_plan import PLAN, write_set

from benchmarks.paper.__main__ import main
from benchmarks.paper.archives import choose, members, open_archive, published, read
from benchmarks.paper.plan import read_plan
from benchmarks.paper.training import looks

DENSE = '"sparse"\nmodel = "LITE"\npruning = [{name = "a", '
SAME = """name = "small"
sets = {of = "all", cheapest = 1}
keep = true
network = {nf = 3, depth = 2}
[[run]]
name = "masked\""""


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("epochs = 12", "epoch = 12", "unknown key epoch; known are epochs, order, run, seeds"),
        ("seeds = [0, 1]", "seed = 1", "run small: unknown key seed"),
        ("depth = 2", "layers = 2", r"unknown key network\.layers; known are backend, depth"),
        ("epochs = 12", "epochs = 0", "epochs must be >= 1"),
        ("epochs = 12", "epochs = ", "is not TOML"),
        ('sets = "all"', 'sets = "ucr86"', "names 'ucr86', which the archive does not hold"),
        ('sets = "all"', "sets = {without = []}", "a table with of"),
        ("cheapest = 1", 'cheapest = "one"', "cheapest must be a number"),
        ('sets = "all"', "sets = []", "sets names no data set; name one at least"),
        (
            '"masked dense"',
            DENSE + 'criterion = "whc", ratio = 0.5}]\n[[run]]\nname = "masked, a"\nsets = "all"',
            "run masked, a has the name that tables give a variant of masked",
        ),
        (
            '"masked dense"',
            DENSE.replace('"a"', '"a\\n"') + 'criterion = "whc", ratio = 0.5}]',
            r"pruning\.name must be a text of one line, but got 'a\\n'",
        ),
        (
            'weights = "masked dense"\nnetwork = {nf = 3, depth = 2}',
            'model = "OS-CNN"\nnetwork = {layers = 3}',
            r"unknown key network\.layers; known are none",
        ),
        ('name = "small"', 'name = ""', "run 1: name must be a text of one line, but got ''"),
        ("cheapest = 1", 'cheaper_than = "Nile"', "'Nile', which the archive does not hold"),
        ('"masked dense"', '"dense"', "weights must be one of sparse, masked dense"),
        ('name = "masked"', 'name = "small"', "it has weights 'sparse' above and 'masked dense'"),
        ('name = "masked"', SAME, "small, Short, seed 0 has keep once, and once not"),
        ("epochs = 12", "epochs = 1000000000000000000", "epochs must be at most 1000000"),
        (
            'weights = "masked dense"\nnetwork = {nf = 3, depth = 2}',
            'model = "ROCKET"\nnetwork = {cv = 1}',
            "network.cv may be",
        ),
        ('"masked dense"', DENSE + 'criterion = "l2"}]', "'a': l2 needs a ratio, the share"),
        (
            '"masked dense"',
            DENSE + 'criterion = "dsp", ratio = 0.5}]',
            "'a': dsp finds out how many filters go; leave its ratio out",
        ),
        ('name = "small"', "", "run 1: it needs 'name'"),
        ('weights = "masked dense"', 'model = "DNS"', "model must be one of DSN, ResNet"),
        ("seeds = [0, 1]", "seeds = 2", "seeds must be a list of integers"),
        ("[[run]]", "[[runs]]", "unknown key runs"),
        ("seeds = [0]", "seeds = []", "seeds must be a list of integers, at least one"),
        ("seeds = [0]", 'order = "cheap"', "order must be one of runs, seeds, sets"),
        ("seeds = [0, 1]", 'keep = "false"', "keep must be true or false"),
        ("seeds = [0, 1]", "recipe = 3", "recipe must be a table"),
        ("seeds = [0, 1]", 'model = ["DSN"]', "model must be one of"),
        ("cheapest = 1", 'without = ["Lnog"]', "names 'Lnog', which the archive does not hold"),
        ('"masked dense"', '"masked dense"\nmodel = "LITE"', "is for DSN, not for LITE"),
        ('"masked dense"', '"masked dense"\nmoments = "mean"', "have the moments that they have"),
        (
            "seeds = [0, 1]",
            "members = 0",
            "members must be a whole number from 1 to 100, but got 0",
        ),
        (
            '"masked dense"',
            DENSE + 'criterion = "whc", ratio = 0.5}]\nmembers = 2',
            "= 2 is not for pruning",
        ),
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


def test_a_plan_in_ones_home(
    plan: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """make hands "~" over as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    opened = open_archive(archive)
    assert read_plan(f"~/{plan.relative_to(tmp_path)}", opened) == read_plan(plan, opened)


def test_what_is_not_there_is_said(plan: Path, archive: Path) -> None:
    opened, said = open_archive(archive), list[str]()
    read_plan(plan, opened, said.append)
    assert said == []
    plan.write_text(PLAN.replace('sets = "all"', 'sets = ["Long", "FordA", "FordB"]', 1))
    assert len(read_plan(plan, opened, said.append)) == 3
    assert said == ["FordA, FordB: the archive does not hold them"]
    plan.write_text(PLAN.replace('of = "all"', 'of = "uea"'))
    said.clear()
    assert len(read_plan(plan, opened, said.append)) == 4
    assert said == ['the runs "masked": nothing of their data sets is there']


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
    (folder / "Third_TEST.ts").write_text((folder / "Other_TEST.ts").read_text())
    (folder / "Fourth_TRAIN.ts").write_text((folder / "Other_TRAIN.ts").read_text())
    broken = open_archive(Path("ts")).broken
    assert "Third_TRAIN.ts" in broken["Third"]
    assert "Fourth_TEST.ts; expected NAME_TRAIN.ts and NAME_TEST.ts" in broken["Fourth"]
    assert {name: shape.n_timepoints for name, shape in opened.shapes.items()} == {
        "GunPoint": 24, "Other": 12,
    }  # fmt: skip


def test_archives_that_are_refused(tmp_path: Path, plan: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; name a folder"):
        open_archive(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "made.toml").mkdir()
    with pytest.raises(ValueError, match="holds no data set; expected"):
        open_archive(tmp_path / "empty")
    with pytest.raises(ValueError, match="is not a folder"):
        open_archive(plan)
    write_set(tmp_path / "nothing" / "Zeros.npz")
    with np.load(tmp_path / "nothing" / "Zeros.npz") as file:
        arrays = {**file, "X_train": np.full_like(file["X_train"], np.nan)}
    np.savez(tmp_path / "nothing" / "Zeros.npz", **arrays)
    assert "training series of" in open_archive(tmp_path / "nothing").broken["Zeros"]
    with pytest.raises(ValueError, match=r"cannot be read: .*directory"):
        read_plan(tmp_path / "made.toml", open_archive(None))
    for folder in "ab":
        write_set(tmp_path / "twice" / folder / "Same.npz")
    with pytest.raises(ValueError, match="holds Same twice"):
        open_archive(tmp_path / "twice")
    assert main(["run", "no such plan"]) == 2


def test_the_plans_that_come_along() -> None:
    archive = open_archive(None)
    demo, full = read_plan("demo", archive), read_plan("full", archive)
    assert {job.run for job in demo} == {job.run for job in full}
    epochs = {job.run: job.recipe().epochs for job in demo}
    assert epochs.pop("UEA, 100 epochs") == 1, "a tenth of the others', as its table says"
    assert set(epochs.values()) == {10}, "docs/paper.md says so"
    for job in demo:
        if job.run in ("DSN", "masked dense"):
            assert looks(archive.shapes[job.dataset], job.recipe()), "or question (a) has no figure"
            assert job.recipe().update_every_epochs < 10, "or no pattern changes"
    assert {job.seed for job in demo} == {0}
    assert {job.recipe().epochs for job in full} == {100, 1000}  # none of the three with 60


def test_sets_are_chosen() -> None:
    archive = open_archive(None)
    assert choose(archive, "ucr85") == ["ItalyPowerDemand", "GunPoint", "ArrowHead", "OSULeaf"]
    assert choose(archive, {"of": "ucr85", "cheaper_than": "OSULeaf", "without": ["GunPoint"]}) == [
        "ItalyPowerDemand",
        "ArrowHead",
    ]
    assert choose(archive, {"of": "all", "without": "ucr85"}) == [
        *choose(archive, "uea"), *choose(archive, "ucr2018"),
    ]  # fmt: skip
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
