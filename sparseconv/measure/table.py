"""Tables of text, and readable numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells of text; the first ``text_columns`` columns are left-aligned, the others right-aligned.

    Example:
        >>> print(Table(("layer", "active"), [("1", "732"), ("2", "34 459")]).markdown())
        | layer | active |
        |:------|-------:|
        | 1     |    732 |
        | 2     | 34 459 |
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, str]], text: Sequence[str] = ()) -> Table:
        """Make a table from rows (cells by column); omit empty columns.

        Args:
            rows: columns follow the longest row's order; missing cells are empty.
            text: names of the columns that come first and are left-aligned; by default, the first.
        """
        rows = list(rows)
        names = dict.fromkeys([*text, *max(rows, key=len, default=())])
        names |= dict.fromkeys(name for row in rows for name in row)
        header = tuple(name for name in names if any(row.get(name) for row in rows))
        cells = [tuple(row.get(name, "") for name in header) for row in rows]
        return cls(header, cells, sum(name in text for name in header) if text else 1)

    def __str__(self) -> str:
        return self.markdown()

    def markdown(self, width: int | None = None) -> str:
        """Format the table as padded Markdown, readable in a terminal.

        If the table is wider than ``width``, only the ends of the first column's entries are kept.
        """
        rows = [[cell.replace("|", r"\|") for cell in row] for row in (self.header, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
        excess = 0 if width is None else sum(widths) + 3 * len(widths) + 1 - width
        if excess > 0:
            widths[0] = most = max(12, widths[0] - excess)
            rows = [[x if len(x) <= most else "…" + x[1 - most :], *rest] for x, *rest in rows]
        sides = ["<" if i < self.text_columns else ">" for i in range(len(widths))]

        def line(cells: Sequence[str]) -> str:
            placed = zip(cells, sides, widths, strict=True)
            return f"| {' | '.join(f'{cell:{side}{width}}' for cell, side, width in placed)} |"

        rules = [
            f":{'-' * (width + 1)}" if side == "<" else f"{'-' * (width + 1)}:"
            for side, width in zip(sides, widths, strict=True)
        ]
        header, *body = map(line, rows)
        return "\n".join([header, f"|{'|'.join(rules)}|", *body])


def with_thousands(number: float) -> str:
    """Format a number with its digits in groups of three.

    Example:
        >>> with_thousands(34459)
        '34 459'
    """
    return f"{number:,.0f}".replace(",", " ")


def threads_text(count: int) -> str:
    """Write ``1 thread`` or ``2 threads``."""
    return f"{count} thread{'s' if count > 1 else ''}"
