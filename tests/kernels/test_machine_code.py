"""The compiled extension runs on any x86-64: only what says so uses AVX2, AVX-512 or AMX."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import pytest
from child import ROOT

from sparseconv.ops.backends import extension

# x86-64 has SSE2. What begins with v is AVX or later, except these two that test segments.
LATER = re.compile(r"(?!verr |verw )v[a-z0-9]+\b|.*%[yzt]mm")
AVX512 = re.compile(r".*(%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2[0-9]|3[01])\b)")


@pytest.mark.promise("P10")
def test_no_instruction_set_leaks_into_other_code() -> None:
    """Not into inline templates either, of which the linker keeps one for everybody.

    Templates count to the namespace of their arguments: nothing else can call those.
    """
    if platform.machine() != "x86_64" or shutil.which("objdump") is None:
        pytest.skip("needs objdump, and a processor x86_64")
    command = ["objdump", "-d", "--no-show-raw-insn", "-C", str(extension.__file__)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name, leaks, wide = "", set(), set()
    for line in listing.splitlines():
        if found := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            name = found[1]
        elif "\t" in line:
            code = " ".join(line.split("\t", 1)[1].split())
            if re.search("sparseconv::avx512(bf16)?::", name):
                wide |= {name} if "%zmm" in code else set()
            elif (AVX512 if "sparseconv::avx2::" in name else LATER).match(code):
                leaks.add((name, code))
    assert not leaks
    assert len(wide) > 20  # so that the search sees what there is


@pytest.mark.promise("P8")
def test_the_build_asks_for_no_fast_math_and_for_no_processor() -> None:
    """Linking with -ffast-math would change denormals in the whole process."""
    files = [ROOT / "setup.py", *(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]
    code = "".join(re.sub(r"//.*|(?m:^\s*#\s.*$)", "", path.read_text()) for path in files)
    flags = set(re.findall(r"-[mfO][\w=-]+", code))
    assert "-ffp-contract=off" in flags  # so that the search sees what there is
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & flags
    assert not {flag for flag in flags if flag.startswith(("-march", "-mtune", "-mavx"))}
