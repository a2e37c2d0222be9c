"""Files with a row of JSON a line: what a kill leaves of one, and what is not a row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.recording import add_line, read_lines

ROWS = [{"a": 1, "name": "é\u2028\n"}, {"a": [2.5, None]}]


def test_a_kill_at_any_byte_loses_the_last_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for row in ROWS:
        add_line(path, row)
    assert read_lines(path) == ROWS
    whole = path.read_bytes()
    first, second = whole.index(b"\n"), len(whole) - 1
    for size in range(len(whole)):
        kept = ROWS[: int(size >= first) + int(size >= second)]  # without its newline it is whole
        path.write_bytes(whole[:size])
        assert read_lines(path) == kept
        add_line(path, {"new": size})
        assert read_lines(path) == [*kept, {"new": size}]


def test_several_may_add_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def add(who: int) -> None:
        for number in range(50):
            add_line(path, {"who": who, "number": number, "pad": "x" * 5000})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    rows = read_lines(path)
    for who in range(4):
        assert [row["number"] for row in rows if row["who"] == who] == list(range(50))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
