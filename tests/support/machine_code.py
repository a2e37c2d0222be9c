"""Reading a disassembled extension: which function uses which instruction set."""

from __future__ import annotations

import re

# x86-64 has SSE2. What begins with v is AVX or later, but for these two that test segments.
_LATER = re.compile(r"(?!verr |verw )v[a-z0-9]+\b|.*%[yz]mm")
_AVX512 = re.compile(r".*(%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2[0-9]|3[01])\b)")


def functions_of(listing: str) -> dict[str, list[str]]:
    """Function -> instructions, from what ``objdump -d --no-show-raw-insn`` prints."""
    functions: dict[str, list[str]] = {}
    code: list[str] = []
    for line in listing.splitlines():
        if found := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            code = functions.setdefault(found[1], [])
        elif "\t" in line:
            code.append(" ".join(line.split("\t", 1)[1].split()))
    return functions


def leaks(listing: str) -> list[str]:
    """Name each function that uses more than the instruction set that its name says.

    Templates count to the namespace of their arguments: nobody else can call those.
    """
    found = []
    for name, code in functions_of(listing).items():
        if "sparseconv::avx512::" in name:
            continue
        wrong = _AVX512 if "sparseconv::avx2::" in name else _LATER
        found += [f"{name}: {line}" for line in code if wrong.match(line)][:1]
    return found
