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
    ("text", "fragment"),
    [
        (f"epochs = \n{RUN}", "is not TOML"),
        (f"epoch = 12\n{RUN}", "unknown key epoch; the known keys are cheapest, epochs, "),
        ('like = "full"', "a plan with the key like also needs cheapest and epochs"),
        (f"epochs = 0\n{RUN}", "run a: epochs must be at least 1"),
        (f'order = "cheap"\n{RUN}', "order must be one of runs, seeds, sets"),
        (f"seeds = 2\n{RUN}", "seeds must be a list of at least one i"),
        (f"{RUN}seed = 1", "run a: unknown key seed"),
        ('[[run]]\nsets = "all"', "run number 1: the key 'name' is missing"),
        (f"{RUN}network = {{layers = 2}}", "run a: got an unexpected keyword argument 'layers'"),
        (RUN.replace("all", "ucr86"), "names 'ucr86', which the archive lacks"),
        (RUN.replace("all", "ucr86"), "all, ucr85, ucr2018, uea; did you mean ucr85?"),
        (RUN.replace('"all"', "{without = []}"), "a table with of"),
        (RUN.replace('"all"', '["FordA"]'), "selects no data set that the archive has"),
        (f'{RUN}model = "DNS"', "model must be one of DSN, ResNet"),
        (f'{RUN}model = "LITE"\nweights = "masked dense"', "does not apply to LITE"),
        (f'{RUN}model = "ROCKET"\nrecipe = {{epochs = 3}}', "does not apply to ROCKET"),
        (f'{RUN}model = "ROCKET"\nnetwork = {{nf = 3}}', "unknown key network.nf"),
        (f'{RUN}{RUN}weights = "masked dense"', "has weights 'sparse', not 'masked dense'"),
        (f'{LITE}[{{name = "b", share = 0.5}}]', "unexpected keyword argument 'share'"),
        (f'{LITE}[{{name = "b", criterion = "luck"}}]', "criterion must be one of whc"),
        (f'{LITE}[{{name = "b", criterion = "l2"}}]', "'b' needs a ratio, the share"),
        (f'{LITE}[{{name = "b", criterion = "dsp", ratio = 0.5}}]', "must not have a ratio"),
        (f'{LITE}[{{name = "b", factorize = "left"}}]', "both factorize and compression"),
        (f'{LITE}[{{name = "b"}}, {{name = "b"}}]', "names 'b' twice"),
        (f'{LITE}[{{name = "b"}}]\nmembers = 2', "members = 2 does not apply to LITE"),
    ],
)
def test_refusals(tmp_path: Path, text: str, fragment: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the fragment says which)
        read_plan(plan, ARCHIVE)
    assert fragment in str(error.value)
