"""``python -m sparseconv train`` refuses what cannot be run, in one line, and changes nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_run import SMALL, files

from sparseconv.cli.main import main
from sparseconv.ops import backends
from sparseconv.training.run_folder import RECIPE


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--epochs", "0"], ["epochs must be >= 1", "0"]),
        (["--lr", "nan"], ["lr must be finite"]),
        (["--sparsity", "1"], ["sparsity must lie in [0, 1)", "1.0"]),
        (["--n-groups", "50"], ["n_groups=50 is too many"]),
        (["--threads", "0"], ["--threads must be at least 1", "0"]),
        (["--seed", "-1"], ["seed must be >= 0", "-1"]),
        (["--seed", str(2**70)], ["seed must be < 2**63", str(2**70)]),
        (["--resume"], ["nothing to resume", "config.json does not exist", "--resume"]),
    ],
)
def test_bad_options_write_nothing(
    data: str, out: Path, refused: Any, words: list[str], expected: list[str]
) -> None:
    refused(["train", data, "--out", str(out), *SMALL, *words], *expected)
    assert not out.exists()


def test_a_backend_that_cannot_run_writes_nothing(
    data: str, out: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", data, "--out", str(out), *SMALL, "--backend", "cpp"]
    if backends.extension is not None:
        with monkeypatch.context() as patched:
            patched.setenv("SPARSECONV_CPU_ISA", "mmx")
            refused(words, "SPARSECONV_CPU_ISA", "mmx", "baseline")
    monkeypatch.setattr(backends, "extension", None)
    refused(words, "backend 'cpp' cannot run")
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [[], ["fly"], ["train"], ["train", "x", "--grow", "fast"], ["train", "x", "--epochs", "many"]],
)
def test_bad_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: python -m sparseconv" in capsys.readouterr().err


def test_unknown_data(tmp_path: Path, out: Path, refused: Any) -> None:
    words = ["train", "GunPont", "--out", str(out)]
    refused(words, "no data set 'GunPont'", "GunPoint", "_TRAIN.ts", ".npz")
    refused(["train", str(tmp_path), "--out", str(out)], "one pair NAME_TRAIN.ts")
    assert not out.exists()


def test_a_name_that_is_no_utf8(data: str, out: Path, refused: Any) -> None:
    other = os.fsdecode(os.fsencode(data).replace(b"toy", b"d\xff"))
    os.rename(data, other)
    refused(["train", other, "--out", str(out), *SMALL], "in UTF-8", r"d\xff.npz", "rename")
    assert not out.exists()


def test_folders_that_are_not_free(data: str, out: Path, refused: Any) -> None:
    words = ["train", data, "--epochs", "2", *SMALL, "--out", str(out)]
    out.write_text("a file")
    refused(words, str(out), "is a file", "--out")
    out.unlink()
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    refused(words, str(out), "holds other files", "--out")
    refused([*words, "--resume"], "nothing to resume")
    assert files(out) == {"thesis.tex": b"mine"}
    (out / "thesis.tex").unlink()
    assert main(words) == 0
    before = files(out)
    refused(words, str(out), "holds a run already", "--resume", "--out")
    assert files(out) == before


def test_a_run_without_a_checkpoint_does_not_block_its_folder(
    data: str, out: Path, refused: Any
) -> None:
    words = ["train", data, "--epochs", "2", *SMALL, "--out", str(out)]
    refused([*words, "--lr", "1e38"], "the training loss became", "lower lr")
    assert files(out).keys() == {"config.json"}
    for left in ("checkpoint.pt.partial", "checkpoint.pt.0123abcd.partial", "training.lock"):
        (out / left).write_bytes(b"killed while it wrote its first checkpoint")
    assert main(words) == 0
    assert not {"training.lock"} & files(out).keys()
    assert not list(out.glob("*.partial"))
    assert json.loads((out / "config.json").read_text())["recipe"]["lr"] == RECIPE["lr"]
    refused(words, "holds a run already")


def test_without_matplotlib_nothing_is_trained(
    data: str, out: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(["train", data, "--out", str(out), *SMALL], "figures need matplotlib", "pip")
    assert not out.exists()


def test_resuming_something_else(data: str, out: Path, refused: Any) -> None:
    words = ["train", data, "--out", str(out), "--resume", "--quiet"]
    assert main(["train", data, "--epochs", "2", *SMALL, "--out", str(out)]) == 0
    before = files(out)
    refused([*words, "--epochs", "3"], "has epochs=2, but --epochs asks for 3", "--out")
    refused([*words, "--kernel-size", "7"], "has kernel_size=6, but --kernel-size asks")
    with np.load(data) as arrays:
        whole = dict(arrays)
    for changes, text in (
        ({"X_train": whole["X_train"] + 1}, "is not its data, its train_sha256 is"),
        ({"X_test": whole["X_test"] + 1}, "is not its data, its test_sha256 is"),
        ({"y_test": whole["y_test"][::-1]}, "is not its data, its test_sha256 is"),
        (
            {"X_test": whole["X_test"][:5], "y_test": whole["y_test"][:5]},
            "its n_test is 5, there 6",
        ),
        ({"y_train": whole["y_train"] + "er", "y_test": whole["y_test"] + "er"}, "its classes is"),
    ):
        np.savez(data, **(whole | changes))
        refused(words, text)
        assert files(out) == before
    np.savez(data, **whole)

    (out / "checkpoint.pt").write_bytes(before["checkpoint.pt"][:1000])
    refused(words, "checkpoint.pt is not a readable checkpoint")
    for text in ("", "{}", "[1]", '{"data": 1, "network": 2, "recipe": 3}'):
        (out / "config.json").write_text(text)
        refused(words, "config.json is not the config.json of a run", "another folder")
    content = json.loads(before["config.json"])
    content["recipe"]["lr"] = "x"
    (out / "config.json").write_text(json.dumps(content))
    for command in (words, ["info", str(out)]):
        refused(command, "config.json is not the config.json of a run", "lr")
