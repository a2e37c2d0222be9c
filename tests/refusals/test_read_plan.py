"""What a plan of ``benchmarks.paper`` is refused for."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.paper.archives import Archive, Shape
from benchmarks.paper.plan import read_plan

ARCHIVE = Archive({"Short": "Short.npz"}, {"Short": Shape(14, 10, 1, 12, 2)}, {}, {})
RUN = '[[run]]\nname = "a"\nsets = "all"\n'
LITE = f'{RUN}model = "LITE"\npruning = '


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f"epochs = \n{RUN}", "TOML"),
        (f"epoch = 12\n{RUN}", "epoch"),
        ('like = "full"', "like"),
        (f"epochs = 0\n{RUN}", "epochs"),
        (f'order = "cheap"\n{RUN}', "order"),
        (f"seeds = 2\n{RUN}", "seeds"),
        (f"{RUN}seed = 1", "seed"),
        ('[[run]]\nsets = "all"', "'name'"),
        (f"{RUN}network = {{layers = 2}}", "'layers'"),
        (RUN.replace("all", "ucr86"), "ucr85"),
        (RUN.replace('"all"', "{without = []}"), "sets"),
        (RUN.replace('"all"', '["FordA"]'), "sets"),
        (f'{RUN}model = "DNS"', "model"),
        (f'{LITE}[]\nweights = "masked dense"', "LITE"),
        (f'{RUN}model = "ROCKET"\nrecipe = {{epochs = 3}}', "ROCKET"),
        (f'{RUN}model = "ROCKET"\nnetwork = {{nf = 3}}', "network.nf"),
        (f'{RUN}{RUN}weights = "masked dense"', "weights"),
        (f'{LITE}[{{name = "b", share = 0.5}}]', "'share'"),
        (f'{LITE}[{{name = "b", criterion = "luck"}}]', "criterion"),
        (f'{LITE}[{{name = "b", criterion = "l2"}}]', "ratio"),
        (f'{LITE}[{{name = "b", criterion = "dsp", ratio = 0.5}}]', "ratio"),
        (f'{LITE}[{{name = "b", factorize = "left"}}]', "factorize"),
        (f'{LITE}[{{name = "b"}}, {{name = "b"}}]', "'b'"),
        (f'{LITE}[{{name = "b"}}]\nmembers = 2', "members"),
    ],
)
def test_refusals(tmp_path: Path, text: str, key: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    with pytest.raises(ValueError, match=key):
        read_plan(plan, ARCHIVE)
