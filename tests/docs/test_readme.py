"""Every Python block of the README runs, in order, as a newcomer would paste it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snippets
import torch

import sparseconv as sc
from sparseconv.reference import dense_weight


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the command line writes its runs
    found = snippets.blocks(snippets.ROOT / "README.md")
    trained = "python -m sparseconv train"
    blocks = [block for block in found if block.language == "python" or trained in block.text]
    assert len(blocks) == 9
    values, pattern = torch.randn(60), sc.KernelCSR.random((3, 4, 39), 60)
    scope: dict[str, Any] = {
        "sc": sc,
        "F": torch.nn.functional,
        "x": torch.randn(2, 4, 60),
        "values": values,
        "pattern": pattern,
        "weight": dense_weight(values, pattern),
        "batches": [(torch.randn(4, 1, 50), torch.tensor([0, 1, 0, 1]))] * 2,
        "X_train": torch.randn(8, 1, 40).numpy(),
        "y_train": np.array(["a", "b"] * 4),
        "X_test": torch.randn(3, 1, 40).numpy(),
    }
    for block in blocks:
        snippets.run(block, scope)
        if block is blocks[0]:
            one_line = re.findall(r"y = (.*?)  +#", block.text)
            sparse, dense = (eval(line, scope) for line in one_line)
            torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(scope["y"], scope["model"].eval()(scope["x"]))
    assert scope["layer"].pattern.density < 0.14
    assert len(scope["classifier"].predict(scope["X_test"])) == 3
