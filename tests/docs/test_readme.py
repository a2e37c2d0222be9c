"""README: it is short, its two calls agree, its links exist. Its snippets run in test_docs."""

from __future__ import annotations

import re

import snippets
import torch

import sparseconv as sc
from sparseconv.reference import dense_weight

README = snippets.ROOT / "README.md"


def test_the_sparse_call_equals_the_dense_one() -> None:
    sparse, dense = re.findall(r"^y = (.*?)  +# ", README.read_text(encoding="utf-8"), re.MULTILINE)
    values, pattern = torch.randn(60), sc.KernelCSR.random((3, 4, 39), 60)
    scope = {"sc": sc, "F": torch.nn.functional, "x": torch.randn(2, 4, 60), "values": values,
             "pattern": pattern, "weight": dense_weight(values, pattern)}  # fmt: skip
    torch.testing.assert_close(eval(sparse, scope), eval(dense, scope))


def test_it_is_read_in_two_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_every_relative_link_exists() -> None:
    for page in (README, *snippets.ROOT.glob("docs/*.md"), snippets.ROOT / "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        missing = [link for link in links if not (page.parent / link).exists()]
        assert not missing, page.name
