"""Arm without one: built across and emulated for Linux, compiled and linked for macOS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import installing
import numpy
import pytest

pytestmark = [pytest.mark.promise("P10"), pytest.mark.campaign("builds kernels, and emulates")]
KEPT = installing.ROOT / "build" / "arm"  # what is downloaded
# A Debian of arm64 packages, without installing one: apt's own state is in the folder.
DEBIAN = """mkdir -p apt/lists/partial apt/archives/partial && : > apt/status
own="-qq -o Dir::State::Lists=$PWD/apt/lists -o Dir::State::status=$PWD/apt/status
    -o Dir::Cache=$PWD/apt -o APT::Architecture=arm64 -o APT::Architectures=arm64
    -o Debug::NoLocking=1 -o APT::Sandbox::User="
apt-get $own update && apt-get $own -y --no-install-recommends --download-only install \
    python3 libpython3-dev libstdc++6 || exit 1
for package in apt/archives/*.deb; do dpkg -x $package . || exit 1; done; rm -r apt"""


def get(name: str, *command: str) -> Path:
    """Fill a folder by a command that runs in it, once."""
    part, folder = KEPT / f"{name}.part", KEPT / name
    if not folder.exists():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if subprocess.run(command, cwd=part, check=False).returncode:
            pytest.skip(f"what {name} needs cannot be downloaded here")
        part.rename(folder)
    return folder


def wheels(python: str, *words: str) -> list[str]:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    return [*pip, "--only-binary=:all:", "--target=.", f"--python-version={python}", *words]


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@pytest.mark.tool("an aarch64 processor (Neoverse N1, emulated)", "works", "the bits of x86")
def test_aarch64_has_the_bits_of_x86(
    tmp_path: Path, campaign: Callable[[int, int], int], count_cases: Callable[[int], None]
) -> None:
    tools = "aarch64-linux-gnu-g++", "qemu-aarch64", "dpkg"
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"no {missing}: apt-get install g++-aarch64-linux-gnu qemu-user, on a Debian")
    root = get("debian", "sh", "-c", DEBIAN)
    python = max(root.glob("usr/bin/python3.*[0-9]"))
    tags = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
    wanted = "torch==2.10.0", f"numpy=={numpy.__version__}"  # PyPI's last torch without CUDA there
    site = get("site", *wheels(python.name[6:], *tags, *wanted))
    ignore = shutil.ignore_patterns(*installing.NOT_SOURCES)
    tree = shutil.copytree(installing.ROOT, tmp_path / "tree", ignore=ignore)
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # Pure Python of this environment serves there too.
        "PYTHONPATH": f"{tree}:{site}:{sysconfig.get_path('purelib')}", "OMP_NUM_THREADS": "1",
        "CXX": tools[0], "CC": tools[0].replace("g++", "gcc"),
        "SPARSECONV_CXXFLAGS":
            f"-idirafter {root}/usr/include -idirafter {root}/usr/include/{python.name}",
    }  # fmt: skip
    library = f"LD_LIBRARY_PATH={root}/usr/lib/aarch64-linux-gnu"
    emulator = ["qemu-aarch64", "-cpu", "neoverse-n1", "-L", str(root), "-E", library,
                "-E", f"PYTHONHOME={root}/usr", str(python)]  # fmt: skip
    build = [*emulator, "setup.py", "build_ext", "--inplace"]
    said = installing.run(build, cwd=tree, env={**os.environ, **env})
    assert "left out" not in said, said[-4000:]
    cases, own = campaign(25, 200), {"PYTHONPATH": str(installing.ROOT)}
    here = installing.check([sys.executable], cases, cwd=tmp_path, env=own)
    there = installing.check(emulator, cases, cwd=tmp_path, env=env)
    assert there["isas"] == ["neon", "baseline"]
    assert there["bits"] == here["bits"]
    count_cases(cases * len(there["isas"]))


@pytest.mark.parametrize("target", ["aarch64-macos.14.0", "x86_64-linux-gnu"])
def test_clang_compiles(target: str, tmp_path: Path) -> None:
    """For macOS all files, and linked; Apple's own tools are not here. For x86 without OpenMP."""
    pytest.importorskip("ziglang", reason="not installed: pip install ziglang")
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", target]
    csrc, torch = installing.ROOT / "csrc", Path(sysconfig.get_path("purelib"), "torch")
    files, openmp = [csrc / "extension.cpp", *csrc.glob("cpu/isa/*.cpp")], []
    if mac := "macos" in target:
        files, openmp = list(csrc.rglob("*.cpp")), ["-Xclang", "-fopenmp"]
        wanted = "--platform=macosx_14_0_arm64", "torch==2.13.0"
        torch = get("macos", *wheels("3.11", *wanted)) / "torch"
    flags = ["-O1", "-std=c++20", "-ffp-contract=off", "-fvisibility=hidden", "-Werror", *openmp,
             "-DSPARSECONV_WITH_CUDA=0", "-DTORCH_EXTENSION_NAME=_C"]  # fmt: skip
    headers = torch / "include", torch / "include/torch/csrc/api/include"
    flags += [f"-isystem{folder}" for folder in (*headers, sysconfig.get_path("include"))]
    objects = []
    for file in files:
        if file.parent.name != "cuda":
            objects.append(tmp_path / f"{file.parent.name}-{file.stem}.o")
            installing.run([*zig, *flags, "-c", file, "-o", objects[-1]])
    if mac:
        libraries = [f"-L{torch}/lib", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python", "-lomp"]
        installing.run([*zig, "-dynamiclib", *objects, *libraries, "-o", tmp_path / "_C.so",
                        "-undefined", "dynamic_lookup"])  # fmt: skip
