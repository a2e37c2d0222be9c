"""Reading the machine code of the register kernels: which share of it multiplies and adds."""

from __future__ import annotations

import re
from typing import NamedTuple


class Line(NamedTuple):
    address: int
    text: str

    @property
    def is_ffma(self) -> bool:
        return self.text.startswith("FFMA")

    def jump(self) -> tuple[bool, int] | None:
        """Whether a jump has a condition, and its target; None for all other instructions."""
        found = re.fullmatch(r"(@!?U?P\d )?BRA (?:!?U?P\d, )?0x([0-9a-f]+)", self.text)
        return (found[1] is not None or "," in self.text, int(found[2], 16)) if found else None


class Share(NamedTuple):
    """FFMA among the instructions that a warp executes.

    Attributes:
        weight: for one more active weight.
        batch: for all that the loop over batches of active weights executes.
        channel: the same with the loads of the window, which two rows of the pattern share.
    """

    weight: float
    batch: float
    channel: float


def kernels_of(listing: str) -> dict[str, list[Line]]:
    """Symbol -> code, from what ``cuobjdump -sass`` prints."""
    kernels = {}
    for part in re.split(r"\n\s*Function : ", listing)[1:]:
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", part)
        kernels[part.split("\n", 1)[0].strip()] = [
            Line(int(address, 16), " ".join(text.split())) for address, text in lines
        ]
    return kernels


def share_of_multiply_adds(
    code: list[Line], reach: int, outputs: int, batches: list[list[int]]
) -> Share:
    """Walk the loop once for each batch of window rows, as a warp does.

    The code of the rows stands in ascending order, ``outputs`` FFMA each. A jump with a condition
    that leads ahead over the code of rows is taken if none of them is wanted; any other is not.
    """
    at = {line.address: i for i, line in enumerate(code)}
    ffma = [i for i, line in enumerate(code) if line.is_ffma]
    assert len(ffma) == 2 * reach * outputs, "not the code of two pattern rows"
    row_of = {i: n // outputs for n, i in enumerate(ffma[: reach * outputs])}
    end = next(
        i
        for i in range(max(row_of), len(code))
        if (jump := code[i].jump()) and at[jump[1]] < min(row_of)
    )
    begin = at[code[end].jump()[1]]  # type: ignore[index]

    def executed(batch: list[int]) -> tuple[int, int]:
        wanted, i, n, multiply_adds = set(batch), begin, 0, 0
        while i <= end:
            n += 1
            multiply_adds += code[i].is_ffma
            jump = code[i].jump()
            target = at[jump[1]] if jump else i
            if jump and i < target <= end:
                skipped = {row_of[j] for j in range(i, target) if j in row_of}
                if not jump[0] or (skipped and not skipped & wanted):
                    i = target
                    continue
            i += 1
        assert multiply_adds == len(wanted) * outputs, "the walk lost its way"
        return n, multiply_adds

    counts = [executed(batch) for batch in batches]
    n, multiply_adds = (sum(column) for column in zip(*counts, strict=True))
    one, two = (executed(list(range(k)))[0] for k in (1, 2))  # of one group: no other test differs
    window = next(i for i in range(begin) if _loads(code, i, reach + outputs - 1))
    per_channel = (begin - window) / 2 * len(batches)
    return Share(outputs / (two - one), multiply_adds / n, multiply_adds / (n + per_channel))


def _loads(code: list[Line], begin: int, n: int) -> bool:
    """Whether the window's loads begin here: ``n`` of them, with little between."""
    near = code[begin : begin + n + n // 2]
    return code[begin].text.startswith("LDS") and sum("LDS" in line.text for line in near) >= n
