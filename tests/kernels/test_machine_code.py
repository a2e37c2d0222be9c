"""The compiled extension runs on any x86-64: only what says so uses AVX2 or AVX-512."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import pytest
from child import ROOT

from sparseconv.ops.backends import extension

# x86-64 has SSE2. What begins with v is AVX or later, but for these two that test segments.
LATER = re.compile(r"(?!verr |verw )v[a-z0-9]+\b|.*%[yz]mm")
AVX512 = re.compile(r".*(%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2[0-9]|3[01])\b)")


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

    Templates count to the namespace of their arguments: nothing else can call those.
    """
    found = []
    for name, code in functions_of(listing).items():
        if "sparseconv::avx512::" in name:
            continue
        wrong = AVX512 if "sparseconv::avx2::" in name else LATER
        found += [f"{name}: {line}" for line in code if wrong.match(line)][:1]
    return found


@pytest.mark.promise("P10")
def test_no_instruction_set_leaks_into_other_code() -> None:
    """Not into inline templates either, of which the linker keeps one for everybody."""
    if extension is None or platform.machine() != "x86_64" or shutil.which("objdump") is None:
        pytest.skip("needs objdump, and the extension built for x86_64")
    command = ["objdump", "-d", "--no-show-raw-insn", "-C", str(extension.__file__)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not leaks(listing)
    functions = functions_of(listing)
    assert any("baseline" in name for name in functions)
    wide = [name for name, code in functions.items() if any("%zmm" in line for line in code)]
    assert len(wide) > 20
    assert all("sparseconv::avx512::" in name for name in wide)


@pytest.mark.parametrize(
    ("name", "code", "leaking"),
    [
        ("PyInit__C", "vmovups (%rax),%ymm0", True),
        ("std::vector<int>::push_back(int&&)", "vaddps %zmm1,%zmm2,%zmm3", True),
        ("sparseconv::avx2::pack(long)", "vaddps %zmm1,%zmm2,%zmm3", True),
        ("sparseconv::avx2::pack(long)", "vpxor %ymm16,%ymm1,%ymm2", True),
        ("sparseconv::avx2::pack(long)", "vpxor %ymm1,%ymm1,%ymm2", False),
    ],
)
def test_a_leak_is_noticed(name: str, code: str, leaking: bool) -> None:
    found = leaks(f"0000000000000000 <{name}>:\n  10:\t{code}\n")
    assert found == ([f"{name}: {code}"] if leaking else [])


@pytest.mark.promise("P8")
def test_the_build_asks_for_no_fast_math_and_for_no_processor() -> None:
    """Linking with -ffast-math would change denormals in the whole process."""
    files = [ROOT / "setup.py", *(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]
    code = "".join(re.sub(r"//.*|(?m:^\s*#\s.*$)", "", path.read_text()) for path in files)
    flags = set(re.findall(r"-[mfO][\w=-]+", code))
    assert "-ffp-contract=off" in flags  # so that the search sees what there is
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & flags
    assert not {flag for flag in flags if flag.startswith(("-march", "-mtune", "-mavx"))}
