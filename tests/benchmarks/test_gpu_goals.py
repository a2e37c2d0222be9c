"""Goals on a GPU: judged by the worst row, beside the fastest dense, and by all that they need."""

from __future__ import annotations

from typing import Any

import pytest
from fake_gpu import MACHINE

from benchmarks import gpu_tables


def row(
    kind: str, length: int = 537, computation: str = "training step", **samples: list[float]
) -> dict[str, Any]:
    """A row whose candidates are named like ``cuda_fp32_graph``."""
    named = {name.replace("_", " "): times for name, times in samples.items()}
    return {"kind": kind, "length": length, "batch": 16, "computation": computation,
            "samples_ms": named, "error": {}}  # fmt: skip


def judged(
    rows: list[dict[str, Any]], checks: list[dict[str, Any]] | None = None, device: str = "H200"
) -> list[Any]:
    document = {"machine": MACHINE | {"device": device}, "rows": rows, "checks": checks or []}
    return [goal for goal in gpu_tables.goals(document) if goal.verdict != "not run"]


def layer_rows(kind: str = "layer", **samples: list[float]) -> list[dict[str, Any]]:
    pairs = [(computation, n) for computation in ("fprop", "dgrad") for n in (537, 2709)]
    return [row(kind, n, computation, **samples) for computation, n in pairs]


def compiled_rows(**samples: list[float]) -> list[dict[str, Any]]:
    return layer_rows("compiled", cuda_fp32_graph=[1.0], **samples)


def test_goals_are_judged_by_the_fastest_dense_form() -> None:
    rows = layer_rows(cuda_fp32_graph=[1.0], dense_fp32_graph=[4.0], dense_TF32_graph=[2.0])
    rows += compiled_rows(dense_fp32_compiled=[9.0], dense_TF32_compiled=[9.0])
    rows[0]["samples_ms"] |= {"dense fp32 graph": [9.0], "dense slices fp32 graph": [3.0]}
    # No goal speaks of it.
    rows.append(row("layer", 150, "fprop", cuda_fp32_graph=[1.0], dense_fp32_graph=[0.1]))
    four, tf32 = judged(rows)
    assert "≥ 4x the fastest dense fp32" in four.goal
    assert four.measured == "worst of 8: 3.00x (fprop, L = 537, beside dense slices)"
    assert four.verdict == "missed by 25%"
    assert (tf32.measured, tf32.verdict) == ("worst of 8: 2.00x (fprop, L = 537, beside dense)",
                                             "met")  # fmt: skip


def test_goals_for_graphs_are_judged_by_what_torch_compile_makes_too() -> None:
    rows = layer_rows(cuda_fp32_graph=[1.0], dense_fp32_graph=[5.0],
                      cuda_fp32_eager=[1.0], dense_fp32_eager=[6.0])  # fmt: skip
    rows += compiled_rows(dense_fp32_compiled=[7.0], cuda_fp32_eager=[0.1])
    slices = {"dense slices fp32 compiled": [3.0]}
    rows[-1]["samples_ms"] |= slices
    graph, eager = judged(rows)
    assert graph.goal.endswith("graph: ≥ 4x the fastest dense fp32, graph or compiled")
    assert graph.measured == "worst of 8: 3.00x (dgrad, L = 2709, beside dense slices compiled)"
    assert graph.verdict == "missed by 25%"
    assert eager.goal.endswith("eager: ≥ 4x the fastest dense fp32, eager")
    assert eager.measured == "worst of 4: 6.00x (fprop, L = 537, beside dense)"
    document = {"machine": MACHINE | {"device": "H200"}, "rows": rows, "checks": []}
    last = [line for line in gpu_tables.layer_table(document).rows if line[2] == "fp32"][-1]
    assert last[3:11] == ("1.00", "3.00", "slices compiled", "3.00 [3.00, 3.00]",
                          "1.00", "6.00", "as it is", "6.00 [6.00, 6.00]")  # fmt: skip
    # One that torch.compile cannot make is no rival, but all of them are missed.
    rows[-1] |= {"absent": dict.fromkeys(slices, "no")}
    del rows[-1]["samples_ms"]["dense slices fp32 compiled"]
    assert judged(rows)[0].verdict == "met"
    del rows[-1]["samples_ms"]["dense fp32 compiled"]
    assert judged(rows)[0].verdict == "not finished"
    assert judged(rows)[0].measured.endswith("; missing: dgrad, L = 2709, compiled")
    rows[0]["samples_ms"]["dense fp32 graph"] = [3.0]  # what is missing cannot mend this
    assert judged(rows)[0].verdict == "missed by 25%"
    assert judged(rows)[1].verdict == "met"


def test_without_any_compiled_row_no_goal_for_graphs_is_met() -> None:
    """As when that part was stopped before its first row."""
    rows = layer_rows(cuda_fp32_graph=[1.0], dense_fp32_graph=[5.0], dense_TF32_graph=[5.0])
    step = row("step", 2709, cuda_fp32_graph=[1.0], dense_fp32_graph=[5.0])
    for goal in judged([*rows, step]):
        assert goal.verdict == "not finished"
        assert goal.measured.endswith(", compiled")


@pytest.mark.parametrize("left", range(8))
def test_goals_of_an_unfinished_layer(left: int) -> None:
    rows = layer_rows(cuda_fp32_graph=[1.0], dense_fp32_graph=[5.0])
    rows += compiled_rows(dense_fp32_compiled=[5.0])
    assert [goal.verdict for goal in judged(rows)] == ["met"]
    assert [goal.verdict for goal in judged(rows, device="cpu")] == []
    gone = rows.pop(left)
    (goal,) = judged(rows)
    assert goal.verdict == "not finished"
    missing = f"missing: {gone['computation']}, L = {gone['length']}"
    missing += ", compiled" * (gone["kind"] == "compiled")
    assert goal.measured.startswith("worst of 7: 5.00x")
    assert goal.measured.endswith(missing)
    rows[0]["samples_ms"]["dense fp32 graph"] = [3.0]  # what is missing cannot mend this
    (goal,) = judged(rows)
    assert goal.verdict == "missed by 25%"
    assert goal.measured.endswith(missing)


def test_goals_of_steps() -> None:
    short = row("step", 150, cuda_fp32_graph=[1.0], dense_fp32_eager=[5.0], dense_fp32_graph=[1.2],
                cuda_TF32_graph=[1.0], dense_TF32_eager=[4.5], dense_TF32_graph=[1.5])  # fmt: skip
    long = row("step", 2709, cuda_fp32_graph=[1.0], dense_fp32_graph=[2.5])
    compiled = [
        row("compiled", length, **{f"cuda_{kind}_graph": [1.0], f"dense_{kind}_compiled": [9.0]})
        for length, kind in ((150, "fp32"), (150, "TF32"), (2709, "fp32"))
    ]
    rows = [short, long, *compiled]
    eager, graph, whole = judged(rows)
    assert (eager.measured, eager.verdict) == (
        "worst of 2: 4.50x (L = 150, TF32, beside dense)", "met",
    )  # fmt: skip
    assert graph.verdict == "missed by 8%"
    assert (whole.measured, whole.verdict) == (
        "worst of 2: 2.50x (L = 2709, fp32, beside dense)", "met",
    )  # fmt: skip
    compiled[2]["samples_ms"]["dense fp32 compiled"] = [2.0]
    assert judged(rows)[2].measured == "worst of 2: 2.00x (L = 2709, fp32, beside dense compiled)"
    (*_, whole) = judged(rows[:-1])
    assert (whole.measured, whole.verdict) == (
        "2.50x (L = 2709, fp32, beside dense); missing: L = 2709, fp32, compiled", "not finished",
    )  # fmt: skip
    del short["samples_ms"]["dense TF32 eager"]
    eager, *_ = judged(rows)
    assert (eager.measured, eager.verdict) == (
        "5.00x (L = 150, fp32, beside dense); missing: L = 150, TF32", "not finished",
    )  # fmt: skip


def check(name: str, ok: bool | None = True) -> dict[str, Any]:
    return {"check": name, "ok": ok, "result": "clean" if ok else "not finished after 9 s"}


def test_goals_of_bits() -> None:
    names = ("bits equal over runs", "bits equal on side streams",
             "bits of replayed graphs are those of eager")  # fmt: skip
    bits = [check(f"cuda, L = {length}: {name}") for length in (128, 1024) for name in names]
    (goal,) = judged([], bits)
    assert goal.verdict == "met"
    for i, gone in enumerate(bits):
        rest = [*bits[:i], *bits[i + 1 :]]
        for found in (rest, [*rest, check(gone["check"], None)]):
            (goal,) = judged([], found)
            assert goal.verdict == "not finished"
            assert goal.measured.endswith(f"; missing: {gone['check']}")
        (goal,) = judged([], [*rest, check(gone["check"], False)])
        assert (goal.measured, goal.verdict) == (f"not so: {gone['check']}", "missed")
    (goal,) = judged([], [check(bits[0]["check"], False)])
    assert goal.verdict == "missed"
    (goal,) = judged([], [check(c["check"].replace("cuda", "cpp")) for c in bits], "cpu")
    assert goal.verdict == "a trial on a CPU"


def test_goals_of_compute_sanitizer() -> None:
    cuda, triton = check("memcheck, cuda"), check("memcheck, triton")
    (goal,) = judged([], [cuda, triton])
    assert goal.goal.startswith("compute-sanitizer memcheck")
    assert goal.verdict == "met"
    for found in ([cuda], [cuda, check("memcheck, triton", None)]):
        (goal,) = judged([], found)
        assert (goal.measured, goal.verdict) == ("clean; missing: memcheck, triton", "not finished")
    (goal,) = judged([], [cuda, check("triton", None)])  # there is no Triton
    assert goal.verdict == "met"
    assert judged([], [check("memcheck, cuda", None), check("memcheck, triton", None)]) == []
