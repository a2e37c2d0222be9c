"""``python -m sparseconv profile``: which network it takes, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_clock import fake_clock
from toy_run import SMALL, files, write_data

from sparseconv import profiling
from sparseconv.cli.main import main
from sparseconv.models import DSN
from sparseconv.training import checkpoint


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``profile`` was called with; only its clock is not real."""
    fake_clock(monkeypatch)
    calls: list[dict[str, Any]] = []
    real = profiling.profile

    def spy(model: DSN, input: torch.Tensor, *, backward: bool) -> Any:
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        calls.append({"model": weights, "shape": tuple(input.shape), "backward": backward,
                      "training": model.training, "threads": torch.get_num_threads()})  # fmt: skip
        return real(model, input, backward=backward)

    monkeypatch.setattr(profiling, "profile", spy)
    return calls


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    words = ["train", write_data(tmp_path), "--epochs", "6", "--out", str(out), *SMALL]
    assert main([*words, "--update-every-epochs", "1"]) == 0
    return out


def test_a_trained_network(
    run_folder: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    before, threads = files(run_folder), torch.get_num_threads()
    capsys.readouterr()
    with torch.random.fork_rng():
        assert main(["profile", str(run_folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| layer")
    assert "blocks.1.conv" in printed
    (call,) = asked
    best = checkpoint.load(run_folder / "checkpoint.pt")["best"]["model"]
    assert call.pop("model").keys() == best.keys()
    assert call == {"shape": (2, 1, 20), "backward": True, "training": True, "threads": 1}
    assert files(run_folder) == before
    assert torch.get_num_threads() == threads


def test_its_best_epoch_with_other_shapes(
    run_folder: Path, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    words = ["profile", str(run_folder / "checkpoint.pt"), "--inference", "--batch", "3"]
    assert main([*words, "--length", "31", "--threads", "2", "--json", str(path)]) == 0
    (call,) = asked
    best = checkpoint.load(run_folder / "checkpoint.pt")["best"]["model"]
    for name, tensor in call.pop("model").items():
        assert torch.equal(tensor, best[name]), name
    assert call == {"shape": (3, 1, 31), "backward": False, "training": False, "threads": 2}
    rows = json.loads(path.read_text())["layers"]
    assert [row["input_shape"] for row in rows] == [[3, 1, 31], [3, 3, 31]]


def test_the_command_line_is_light() -> None:
    """Parsing a command must not import what only measuring needs."""
    code = (
        "import sys\nfrom sparseconv.cli.main import main\nmain(['info'])\n"
        "assert not {'matplotlib', 'aeon', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
