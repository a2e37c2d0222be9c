"""The generated files: warnings, sanitizers, symbols, the self-test, other processors."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_program import COMPILERS, FLAGS, Program, run
from edge_networks import NETWORKS, expected, export, extreme, network, series
from torch import nn

import sparseconv as sc
from benchmarks.edge import targets
from sparseconv.edge import lowering, quantize, storage

WEIGHTS = ("float32", "int8")
WRITTEN = ("net.c", "net.h", "net_test.c", "README.md")
ALLOWED = {"expf", "logf", "erff"}
# Together they have all that there is.
FEW = ("dsn", "reflect", "ends_with_bins", "long_gaps", "everything")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", FEW)
def test_symbols_and_sections(name: str, weights: str, exported: Any) -> None:
    """Nothing is shown but two functions, nothing is called but a few of libc's."""
    folder = exported(name, weights)
    for compiler in COMPILERS:
        for level in ("-O0", "-O3"):
            run([compiler, *FLAGS, level, "-fno-pie", "-c", "net.c", "-o", "net.o"], folder)
            rows = [line.split()[-2:] for line in run(["nm", "net.o"], folder).splitlines()]
            assert {symbol for kind, symbol in rows if kind.isupper() and kind != "U"} == {
                "net_predict", "net_scores",
            }  # fmt: skip
            assert {symbol for kind, symbol in rows if kind == "U"} <= ALLOWED
            # No state but the arena, which has the size that the header says.
            data = {symbol for kind, symbol in rows if kind in "dDbB"}
            assert data == {"arena"}
            bss = re.search(r"\.bss\s+(\w+)", run(["objdump", "-h", "net.o"], folder))
            wanted = re.search(r"ARENA_BYTES (\d+)", (folder / "net.h").read_text())
            assert bss is not None
            assert wanted is not None
            assert int(bss[1], 16) == int(wanted[1])


class Returns(nn.Module):
    def __init__(self, output: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.output = network("dsn"), output

    def forward(self, x: torch.Tensor) -> Any:
        return self.output(self.inner(x))


def files(folder: Path) -> dict[str, str]:
    """The four that are written."""
    return {file: (folder / file).read_text() for file in WRITTEN}


def test_a_tensor_in_a_container(exported: Any, tmp_path: Path) -> None:
    model = Returns(lambda y: [{"loss": None, "logits": (y,)}]).eval()
    made = sc.export_c(model, series(24), tmp_path / "in", name="net")
    assert files(made) == files(exported("dsn", "float32"))
    assert len(list(made.iterdir())) == len(WRITTEN)


def test_the_default_dtype_changes_nothing(exported: Any, tmp_path: Path) -> None:
    alone = exported("dsn", "float32")
    models, X = (network("dsn"), network("dsn").double(), Returns(lambda y: y)), series(24)
    try:
        torch.set_default_dtype(torch.float64)
        for number, model in enumerate(models):
            made = sc.export_c(model.eval(), X, tmp_path / f"{number}", name="net")
            assert files(made) == files(alone)
            sc.export_c(model, X, tmp_path / f"{number}8", weights="int8", calibration=X)
            self_test(tmp_path / f"{number}8")
    finally:
        torch.set_default_dtype(torch.float32)


def self_test(folder: Path, name: str = "dsn") -> None:
    """Compile the self-test, against a header that C++ reads as well, and run it."""
    run(["gcc", *FLAGS, "-O2", f"{name}.c", f"{name}_test.c", "-lm", "-o", "t"], folder)
    assert run(["./t"], folder) == "3 of 3 series as expected\n"
    (folder / "use.cpp").write_text(f'#include "{name}.h"\nint main() {{ return 0; }}\n')
    run(["g++", "-Wall", "-Wextra", "-Werror", "-pedantic", "-c", "use.cpp"], folder)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", FEW)
def test_the_self_test_passes_and_can_fail(
    name: str, weights: str, exported: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported(name, weights), tmp_path / "a")
    self_test(folder, "net")
    # One weight of the first layer is another.
    source = (folder / "net.c").read_text()
    damaged = re.sub(r"(bias_0\[\d+\] = \{\n\s+)[^,\n}]+", r"\g<1>99999", source, count=1)
    assert damaged != source
    (folder / "net.c").write_text(damaged)
    with pytest.raises(AssertionError, match=r"[012] of 3 series"):
        self_test(folder, "net")


def test_one_channel_calls_nothing(tmp_path: Path) -> None:
    """Loops over one channel that copy samples are a memcpy or a memset for compilers."""
    model = nn.Sequential(
        nn.Conv1d(1, 3, 9, padding=4, padding_mode="replicate"), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    ).eval()  # fmt: skip
    X = series(9, channels=1, length=300)
    for weights, known in (("float32", None), ("int8", X)):
        folder = sc.export_c(model, X, tmp_path / weights, weights=weights, calibration=known)
        for compiler in COMPILERS:
            # Without a library gcc leaves the calls that it would replace by instructions.
            for level in ("-O3", "-ffreestanding"):
                words = [compiler, *FLAGS, "-O2", level, "-fno-pie", "-c", "dsn.c", "-o", "dsn.o"]
                run(words, folder)
                assert not run(["nm", "-u", "dsn.o"], folder)


@pytest.mark.parametrize("kind", ["double", "bfloat16", "float16", "autocast"])
def test_the_self_test_of_other_types(kind: str, tmp_path: Path) -> None:
    model, X = network("dsn"), series(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        other = model if kind == "autocast" else model.to(getattr(torch, kind))
        self_test(sc.export_c(other, X, tmp_path / "a"))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_self_test_of_classes_that_tie(weights: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    row = torch.randn(64)
    tied = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    with torch.no_grad():
        tied[1].weight.copy_(torch.stack([row, row.flip(0)]))
        tied[1].bias.zero_()
    X = torch.ones(3, 1, 64) * torch.tensor([0.1, 0.7, 1.3])[:, None, None]
    known = X if weights == "int8" else None
    self_test(sc.export_c(tied, X, tmp_path / "a", weights=weights, calibration=known))


@pytest.mark.parametrize(
    ("end", "weights"),
    [([], "int8"), ([nn.Sigmoid()], "float32"), ([nn.Hardsigmoid(), nn.Flatten(0)], "int8")],
)
def test_one_score_is_two_classes(end: list[nn.Module], weights: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    X, body = series(40), nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(80, 1))
    with torch.no_grad():
        scores = body(X).sort(0)[0]
        body[2].bias -= scores[19:21].mean()
        wanted = (body(X)[:, 0] > 0).int()
    folder = sc.export_c(nn.Sequential(*body, *end).eval(), X, tmp_path / "a", weights=weights,
                         calibration=X if weights == "int8" else None, classes="nm")  # fmt: skip
    self_test(folder)
    off = Program(folder).labels(X.numpy()) != wanted.numpy()
    assert off.sum() <= (weights == "int8")  # of the nearest
    said = f"1 if the score is above {0.5 if end else 0}, otherwise 0"
    assert all(said in (folder / name).read_text() for name in ("dsn.h", "README.md"))


def test_what_the_readme_says(tmp_path: Path) -> None:
    """Sizes and costs are those of the arrays in the program, and of the network."""
    X = series(24)
    folder = sc.export_c(network("long_gaps"), X, tmp_path / "a", weights="int8", calibration=X,
                         classes=["no */ end", *"bc|"], name="net")  # fmt: skip
    readme, source = (folder / "README.md").read_text(), (folder / "net.c").read_text()
    sizes = {"int8_t": 1, "uint8_t": 1, "uint16_t": 2, "int32_t": 4}
    arrays = re.findall(r"^static const (\w+) \w+\[(\d+)\] = ", source, re.MULTILINE)
    assert {kind for kind, _ in arrays} == {"int8_t", "uint8_t", "int32_t"}, "gaps of one byte"
    total = sum(sizes[kind] * int(length) for kind, length in arrays)
    index = sum(int(length) for kind, length in arrays if kind == "uint8_t")
    (last,) = re.findall(r"^\| all .*$", readme, re.MULTILINE)
    cells = [cell.strip().replace(" ", "") for cell in last.strip("|").split("|")]
    model = network("long_gaps")
    macs = 40 * 3 * 22 + model[1].pattern.nnz * 22 + sum(
        layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear)
    )  # fmt: skip
    pooled = macs + 5 * 22
    assert [int(cell) for cell in cells[2:]] == [index, total, pooled]
    integers = quantize.quantize(lowering.lower(model, *X.shape[1:]), X.numpy())
    with torch.no_grad():
        same = (integers.run(X.numpy()).argmax(1) == model(X).argmax(1).numpy()).sum()
    assert f"The class agrees with PyTorch's for {same} of the 24 calibration series;" in readme
    assert "| 0 | no * / end |" in readme
    assert "0: no * / end" in (folder / "net.h").read_text()
    run(["gcc", *FLAGS, "-c", "net.c"], folder)


def arena(model: nn.Module, length: int, tmp_path: Path) -> int:
    folder = sc.export_c(model.eval(), series(3, length=length), tmp_path / "a")
    found = re.search(r"ARENA_BYTES (\d+)", (folder / "dsn.h").read_text())
    assert found is not None
    return int(found[1])


def test_tensors_share_memory(tmp_path: Path) -> None:
    """Sums and functions overwrite an input; joined parts are written where they are read."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv1d(3, 8, 1), nn.Conv1d(16, 4, 1)
            self.a, self.b = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self.first(x))
            x = x + self.b(torch.sigmoid(self.a(x)))
            return self.last(torch.cat([self.a(x), self.b(x)], 1)).amax(-1)

    # Three tensors of 8 channels at one time, each with a sample of padding at both ends.
    assert arena(Block(), 50, tmp_path) == 4 * 3 * 8 * 52 + 4 * 4


def test_pools_store_one_window(tmp_path: Path) -> None:
    """However long the series is, a weight and a gap for each channel and sample of a window."""
    pools = nn.MaxPool1d(3, 2, 1, ceil_mode=True), nn.AvgPool1d(3, 2, 1)
    model = nn.Sequential(*pools, nn.AdaptiveAvgPool1d(1), nn.Flatten()).eval()
    readme = sc.export_c(model, series(3, length=600), tmp_path / "a") / "README.md"
    rows = re.findall(
        r"^\| m.*, 3 taps.*\|\s+([\d ]+?) \|[^|]*\|$", readme.read_text(), re.MULTILINE
    )
    # float32, int8 for a gap; a count and a bias of each channel.
    assert [int(row) for row in rows] == 2 * [3 * 3 * (4 + 1) + 3 * (1 + 4)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_blocks_store_their_taps_once(
    weights: str, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bytes of index for each run, a count for each block of rows, and the same bits."""
    X = series(50).numpy()
    folder = exported("blocks", weights)
    monkeypatch.setattr(storage, "SHORTEST_RUNS", math.inf)
    single = export("blocks", tmp_path / "b", weights)
    bits = [Program(each, "net").scores(X).tobytes() for each in (folder, single)]
    assert bits[0] == bits[1]
    sizes = [
        [int(size.replace(" ", "")) for size in re.findall(
            r"^\| sparse.*?\|[^|]*\|\s+([\d ]+?) \|", (each / "README.md").read_text(), re.MULTILINE
        )] for each in (folder, single)
    ]  # fmt: skip
    conv = network("blocks")[5]
    runs = 0
    for rows in conv.pattern.to_mask().numpy()[::8]:
        read = np.pad(rows.T, ((0, 0), (0, 16))).ravel()  # the other group's channels lie between
        runs += int((np.diff(read, prepend=False) & read).sum())
    assert sizes[0][1] == 2 * runs + 6
    assert sizes[0][0] < sizes[1][0] / 15


@pytest.mark.promise("P5")
@pytest.mark.parametrize("weights", WEIGHTS)
def test_sanitizers(
    weights: str, exported: Any, count_cases: Callable[[int], None], campaign: Callable[..., int]
) -> None:
    """10 000 random and extreme series through the five networks together, or through each."""
    X = extreme(campaign(2_500, 10_000), *series(1).shape[1:])
    for name in [*FEW, *(name for name in NETWORKS if name not in FEW)][: campaign(5, 99)]:
        folder = exported(name, weights)
        (folder / "series.bin").write_bytes(X.tobytes())
        for compiler in COMPILERS[: campaign(1, 2)]:
            run([compiler, *FLAGS, "-O1", "-g", "-fsanitize=address,undefined",
                 "-fno-sanitize-recover=all", f"-I{folder}", targets.SOURCES / "predict.c",
                 "net.c", "-lm", "-o", "t"], folder)  # fmt: skip
            run(["./t"], folder)
            # A label and the scores of each.
            classes = re.search(r"CLASSES (\d+)", (folder / "net.h").read_text())
            assert classes is not None
            written = (folder / "scores.bin").stat().st_size
            assert written == len(X) * 4 * (1 + int(classes[1]))
            count_cases(len(X))


@pytest.mark.parametrize("target", targets.TARGETS[1:], ids=lambda target: target.name)
@pytest.mark.parametrize("name", FEW)
def test_other_processors(
    name: str, target: targets.Target, exported: Any, count_cases: Callable[[int], None]
) -> None:
    """int8 has the same bits everywhere; float32 and labels as the bounds allow."""
    if missing := target.missing():
        pytest.skip(f"{target.name}: apt-get install {missing}")
    X = np.concatenate([series(20).numpy(), extreme(60, *series(1).shape[1:])])
    for weights in WEIGHTS:
        folder = exported(name, weights)
        with torch.no_grad():
            classes = network(name)(series(1)).shape[1]
        labels, scores = targets.predict(target, folder, X, classes)
        if weights == "int8":
            here, wanted = targets.predict(targets.TARGETS[0], folder, X, classes)
            assert scores.tobytes() == wanted.tobytes()
            assert (labels == here).all()
        else:
            assert ((labels < 0) >= np.isnan(scores).any(1)).all()
            assert (labels[:20] >= 0).all()
            exact, bound = expected(network(name), series(20))
            assert (np.abs(scores[:20] - exact) <= bound).all()
        count_cases(len(X))
