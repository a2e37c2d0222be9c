"""What the figures of `make paper` show, from rows made by hand."""

from __future__ import annotations

from paper_rows import on, row

from benchmarks.paper import figures
from benchmarks.paper.comparison import frame


def test_time_to_accuracy() -> None:
    """Of equal seeds; what was seen at the first look may have been reached before."""
    runs = frame([
        row("fast", "x", 0, 0.9, curve=[[1, 0.5], [2, 0.9]], curve_seconds=[1.0, 2.0]),
        row("fast", "x", 1, 0.8, curve=[[1, 0.9], [2, 0.9]], curve_seconds=[1.0, 2.0]),
        row("fast", "x", 2, 0.8, curve=[[1, 0.9], [2, 0.9]], curve_seconds=[0.1, 2.0]),
        row("slow", "x", 0, 0.7, curve=[[1, 0.2], [2, 0.69]], curve_seconds=[5.0, 9.0]),
        row("slow", "x", 1, 0.9, curve=[[1, 0.2], [2, 0.3]], curve_seconds=[5.0, 9.0],
            train_seconds=11.0),
        row("fast", "x", 3, 0.9, **on("another")),
        row("slow", "x", 3, 0.9),
        row("fast", "x", 4, 0.9, curve=[[1, 0.9]], curve_seconds=[100.0]),
        row("slow", "x", 4, 0.9, curve=[[5, 0.9]], curve_seconds=[100.0]),  # looked later
        row("slow", "y", 0, 0.9),
        row("fast", "y", 0, 0.9, curve=[], curve_seconds=[]),
    ])  # fmt: skip
    found = figures.times_to_accuracy(runs, "fast", "slow")
    # Fast: seed 0 at the second look, seed 1 at the first. Slow: seed 1 by the test at the end.
    assert found.to_dict("index") == {
        "x": {
            ("seconds", "fast"): 1.5, ("bound", "fast"): True, ("seeds", "fast"): 2,
            ("seconds", "slow"): 10.0, ("bound", "slow"): True, ("seeds", "slow"): 2,
        }
    }  # fmt: skip
