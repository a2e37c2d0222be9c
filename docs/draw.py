"""The drawings of the documentation, as inline SVG in the page's own colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CELL = 22  # side of a cell; the unit of most drawings


class Drawing:
    """Shapes, in the order in which they are painted."""

    def __init__(self, width: int, height: int, label: str) -> None:
        self.parts: list[str] = []
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{label}"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" '
            'fill="var(--faint)"/></marker></defs>'
        )

    def box(
        self, x: float, y: float, w: float, h: float, fill: str = "card", edge: str = "line"
    ) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="var(--{fill})" '
            f'stroke="var(--{edge})" rx="1.5"/>'
        )

    def text(
        self, x: float, y: float, text: str, *, at: str = "start", size: int = 14, css: str = ""
    ) -> None:
        css = f' class="{css}"' if css else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{at}" font-size="{size}"{css}>{text}</text>'
        )

    def line(self, x: float, y: float, x2: float, y2: float, *, colour: str = "faint") -> None:
        self.parts.append(
            f'<path d="M{x:g} {y:g} {x2:g} {y2:g}" stroke="var(--{colour})" stroke-width="1.3" '
            'fill="none" marker-end="url(#tip)"/>'
        )

    def cells(
        self,
        x: float,
        y: float,
        fills: Sequence[str],
        texts: Sequence[object] = (),
        width: float = CELL,
    ) -> None:
        """A row of cells, each with its fill and perhaps a text."""
        for i, fill in enumerate(fills):
            self.box(x + i * width, y, width, CELL, fill)
            if i < len(texts):
                self.inside(x + i * width, y, width, texts[i], fill)

    def inside(self, x: float, y: float, width: float, text: object, fill: str) -> None:
        """A text in a cell, in a colour that can be read on its fill, light and dark."""
        css = {"card": "", "soft": "", "blue": "on-dark"}.get(fill, "on-light")
        self.text(x + width / 2, y + 15.5, str(text), at="middle", size=12, css=css)

    def svg(self) -> str:
        return self.head + "".join(self.parts) + "</svg>"


# Output channel 0 and 1 of a small layer: its active taps for each of three input channels.
ACTIVE = {0: [(0, 2, 5), (3,), (1, 6)], 1: [(4,), (), (0, 1)]}
TAPS = 7


def computes() -> str:
    d = Drawing(520, 312, "Active weights of one output channel meet the input below them")
    at, left = 4, 120  # position of the output, x of the first cell
    n = 17
    for c, taps in enumerate(ACTIVE[0]):
        y = 46 + c * 66
        d.text(12, y + 16, f"kernel (o, {c})", css="faint")
        d.cells(left + at * CELL, y, ["blue" if k in taps else "card" for k in range(TAPS)])
        d.text(12, y + 44, f"input {c}", css="faint")
        used = [at + k for k in taps]
        d.cells(left, y + 28, ["soft" if i in used else "card" for i in range(n)])
    d.text(left + (at + TAPS / 2) * CELL, 34, "K taps, few of them active", at="middle")
    y = 46 + 3 * 66 + 18
    d.text(12, y + 16, "output o", css="faint")
    d.cells(left, y, ["orange" if i == at else "card" for i in range(n - TAPS + 1)])
    d.line(left + (at + 0.5) * CELL, y - 14, left + (at + 0.5) * CELL, y - 1)
    d.text(left + (at + 1.3) * CELL, y - 4, "6 multiply-adds instead of 21", size=13)
    return d.svg()


def csr() -> str:
    d = Drawing(520, 330, "A pattern as one CSR row per kernel")
    rows = [(o, c, taps) for o in ACTIVE for c, taps in enumerate(ACTIVE[o])]
    d.text(98 + 3.5 * CELL, 20, "taps 0 … 6", at="middle")
    d.text(330, 20, "crow_indices", css="mono")
    start, cols = 0, []
    for i, (o, c, taps) in enumerate(rows):
        y = 30 + i * (CELL + 6)
        d.text(10, y + 16, f"kernel ({o}, {c})", size=13, css="faint")
        d.cells(98, y, ["blue" if k in taps else "card" for k in range(TAPS)])
        d.box(330, y, 34, CELL, "soft")
        d.text(347, y + 15.5, str(start), at="middle", size=13)
        d.line(98 + 7 * CELL + 6, y + 11, 324, y + 11)
        d.text(374, y + 15.5, "empty" if not taps else "", size=13, css="faint")
        start += len(taps)
        cols += list(taps)
    y = 30 + len(rows) * (CELL + 6)
    d.box(330, y, 34, CELL, "soft")
    d.text(347, y + 15.5, str(start), at="middle", size=13)
    d.text(374, y + 15.5, "= nnz", size=13, css="faint")
    y += 40
    d.text(10, y + 16, "col_indices", css="mono", size=13)
    d.cells(120, y, ["soft"] * len(cols), cols, 30)
    d.text(10, y + 46, "values", css="mono", size=13)
    d.cells(120, y + 30, ["blue"] * len(cols), (), 30)
    d.text(120 + len(cols) * 30 + 10, y + 46, "the parameter", size=13, css="faint")
    return d.svg()


LANES = ("blue", "sky", "gold", "orange")


def packing() -> str:
    d = Drawing(520, 330, "Series are cut into pieces; each piece becomes one lane of the scratch")
    d.text(10, 20, "two series of one channel, each cut into two pieces")
    for i in range(2):
        y = 30 + i * 34
        d.text(10, y + 16, f"x[{i}]", css="mono", size=13)
        d.cells(60, y, [LANES[2 * i]] * 6 + [LANES[2 * i + 1]] * 6, range(12))
        d.text(60 + 12 * CELL + 8, y + 16, "+ padding", size=13, css="faint")
    d.text(10, 126, "scratch in L1: a column per piece, a row per position")
    left, top = 150, 136
    for r in range(8):
        y = top + r * CELL
        for lane, fill in enumerate(LANES):
            sample = r + 6 * (lane % 2)
            outside = sample > 11
            fill = "card" if outside else fill
            d.cells(left + lane * 44, y, [fill], ["pad" if outside else sample], 44)
        d.text(left - 10, y + 15.5, f"row {r}", at="end", size=12, css="faint")
    d.text(left + 4 * 44 + 14, top + 15, "one row = 64 bytes,", size=13)
    d.text(left + 4 * 44 + 14, top + 33, "always aligned", size=13)
    d.text(left + 4 * 44 + 14, top + 70, "tap k of output r", size=13)
    d.text(left + 4 * 44 + 14, top + 88, "reads row r + k", size=13)
    d.text(left + 4 * 44 + 14, top + 125, "rows 6, 7: the halo", size=13, css="faint")
    return d.svg()


def tile() -> str:
    d = Drawing(520, 292, "A tile of outputs stays in registers while active weights pass by")
    d.text(10, 20, "active weights of output channel o, in CSR order")
    d.cells(10, 30, ["blue"] + ["soft"] * 5, ["w₀", "w₁", "w₂", "w₃", "w₄", "…"], 40)
    d.text(268, 46, "each: a value and a scratch row", size=13, css="faint")
    d.line(30, 54, 30, 92)
    d.text(38, 78, "broadcast", size=13)
    top = 98
    d.text(10, top + 16, "w₀ in every lane", size=13)
    d.cells(140, top, ["blue"] * 4, (), 26)
    d.text(10, top + 62, "R scratch rows", size=13)
    d.text(10, top + 80, "from its row on", size=13)
    d.text(330, top + 62, "R registers of sums,", size=13)
    d.text(330, top + 80, "kept for all weights", size=13)
    for r in range(5):
        y = top + 46 + r * (CELL + 2)
        for lane, fill in enumerate(LANES):
            d.box(140 + lane * 26, y, 26, CELL, fill)
        d.line(140 + 4 * 26 + 4, y + 11, 282, y + 11)
        d.box(286, y, 34, CELL, "green")
    d.text(330, top + 120, "sum[r] += w₀ · row[r]", css="mono", size=12)
    d.text(330, top + 142, "one aligned load for", size=13, css="faint")
    d.text(330, top + 160, "each multiply-add", size=13, css="faint")
    return d.svg()


def dgrad() -> str:
    d = Drawing(520, 250, "dgrad walks the transposed pattern and reads values through an index")
    d.text(10, 20, "pattern: rows (o, c)")
    d.text(300, 20, "transposed: rows (c, o)")
    order: dict[tuple[int, int, int], int] = {}
    for o in ACTIVE:
        for c, taps in enumerate(ACTIVE[o]):
            y = 30 + (o * 3 + c) * (CELL + 4)
            d.text(10, y + 16, f"({o}, {c})", css="mono", size=12)
            order |= {(o, c, k): len(order) + i for i, k in enumerate(taps)}
            d.cells(60, y, ["blue" if k in taps else "card" for k in range(TAPS)],
                    [order.get((o, c, k), "") for k in range(TAPS)])  # fmt: skip
    for c in range(3):
        for o in ACTIVE:
            y = 30 + (c * 2 + o) * (CELL + 4)
            d.text(300, y + 16, f"({c}, {o})", css="mono", size=12)
            places = [order.get((o, c, k), "") for k in reversed(range(TAPS))]
            d.cells(350, y, ["card" if place == "" else "orange" for place in places], places)
    d.line(222, 108, 290, 108)
    d.text(10, 212, "The number in a cell is the weight's place in", size=13, css="faint")
    d.text(10, 230, "values, which stay where they are.", size=13, css="faint")
    return d.svg()


def wgrad() -> str:
    d = Drawing(520, 260, "wgrad: gradients stay in registers; each active weight sums one vector")
    d.text(10, 20, "a tile of the output's gradient,")
    d.text(10, 38, "in registers")
    d.text(300, 20, "rows of the packed input,")
    d.text(300, 38, "from the weight's row on")
    for r in range(4):
        y = 50 + r * (CELL + 2)
        d.cells(60, y, ["green"] * 4, (), 26)
        d.text(230, y + 16, "&#215;", at="middle")
        for lane, fill in enumerate(LANES):
            d.box(300 + lane * 26, y, 26, CELL, fill)
    d.line(232, 150, 232, 176)
    d.text(242, 168, "added up, row by row", size=13)
    d.cells(180, 180, ["purple"] * 4, (), 26)
    d.text(296, 196, "one vector per active weight", size=13)
    d.line(232, 204, 232, 226)
    d.text(242, 220, "lanes added at the end, in a fixed order", size=13)
    d.box(221, 230, CELL, CELL, "blue")
    d.text(252, 246, "grad of values[e]", css="mono", size=12)
    return d.svg()


DRAWINGS: dict[str, Callable[[], str]] = {
    "computes": computes,
    "csr": csr,
    "packing": packing,
    "tile": tile,
    "dgrad": dgrad,
    "wgrad": wgrad,
}
