"""``python -m sparseconv profile``: which network it takes, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_clock import fake_clock
from toy_run import SMALL, files

from sparseconv import profiling
from sparseconv.models import DSN
from sparseconv.training import checkpoint


def test_a_trained_network(
    data: str, out: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the best epoch, on series as in training or others; only the clock is not real."""
    fake_clock(monkeypatch)
    calls: list[Any] = []
    real = profiling.profile

    def spy(model: DSN, input: torch.Tensor, *, backward: bool) -> Any:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, best[name]), name
        calls.append((tuple(input.shape), backward, model.training, torch.get_num_threads()))
        return real(model, input, backward=backward)

    monkeypatch.setattr(profiling, "profile", spy)
    command("train", data, "--epochs", 6, "--out", out, *SMALL, "--update-every-epochs", 1)
    best = checkpoint.load(out / "checkpoint.pt")["best"]["model"]
    before, threads = files(out), torch.get_num_threads()
    with torch.random.fork_rng():
        printed = command("profile", out)
    assert printed.startswith("| layer")
    assert "blocks.1.conv" in printed

    path = out.with_name("out.json")
    words = ["--inference", "--batch", 3, "--length", 31, "--threads", 2, "--json", path]
    command("profile", out / "checkpoint.pt", *words)
    assert calls == [((2, 1, 20), True, True, 1), ((3, 1, 31), False, False, 2)]
    rows = json.loads(path.read_text())["layers"]
    assert [row["input_shape"] for row in rows] == [[3, 1, 31], [3, 3, 31]]
    assert files(out) == before
    assert torch.get_num_threads() == threads
