"""A copy of the tree in which one mutant after another is compiled and tested.

Nothing of the package may be imported here: the tests run in forks of this process, which saves
them torch's import, and have to find the changed package.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import hypothesis  # noqa: F401  (so that forks need not import it)
import pytest
import torch.testing  # noqa: F401
from torch.utils.cpp_extension import include_paths, library_paths

from benchmarks.mutations import Mutation

# One test may take so long, in seconds; the slowest takes some five. An endless loop takes longer.
TEST_LIMIT = 60
RUN_LIMIT = 1800
MEMORY = 8 << 30  # bytes: a mutant may well ask for all there is


class MutantsError(RuntimeError):
    """Nothing can be learnt from a run; the text says why."""


class Run(NamedTuple):
    """How the tests of a mutant ended, and which of them told."""

    outcome: str  # survived, killed, timeout, invalid or equivalent
    by: str = ""


class Tree:
    """The copy.

    Args:
        source: the tree to copy: what git tracks there, and what is new and not ignored.
        folder: where it goes; what lies there is removed.
        files: what is going to be changed, and the tests of each.
        compiler: its command and flags.
        isa: the only instruction set to compile and offer; None: all.
    """

    def __init__(
        self,
        source: Path,
        folder: Path,
        files: Mapping[str, tuple[str, ...]],
        compiler: Sequence[str] = (),
        *,
        isa: str | None = None,
    ) -> None:
        self.root, self.objects, self.output = (
            folder / name for name in ("tree", "objects", "output")
        )
        self.files, self.compiler, self.isa = files, compiler, isa
        self._written = int(time.time())
        shutil.rmtree(folder, ignore_errors=True)
        self.objects.mkdir(parents=True)
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(words, cwd=source, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (source / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / name, self.root / name)
        csrc = self.root / "csrc"
        self.units = sorted([*csrc.glob("*.cpp"), *(csrc / "cpu").glob("*.cpp")])
        if isa is not None:
            self._offer_only(isa)

    def prepare(self) -> None:
        """Compile everything, and see that every test passes before anything is changed.

        Raises:
            MutantsError: it does not compile, or a test fails.
        """
        for unit in self.units:
            if error := self._compile(unit, self._object(unit)):
                raise MutantsError(f"{unit.name} does not compile:\n{error}")
        if self.units:
            self._link([self._object(unit) for unit in self.units], self._unchanged)
            self._install(self._unchanged)
        tests = sorted({f"tests/{test}" for tests in self.files.values() for test in tests})
        if (run := self._test(tests)).outcome != "survived":
            raise MutantsError(f"a test fails before anything is changed: {run}")

    def judge(self, mutation: Mutation) -> Run:
        """Change a file, run its tests, and change it back."""
        path = self.root / mutation.file
        before = path.read_text(encoding="utf-8")
        after = mutation.applied(before)
        tests = [f"tests/{name}" for name in self.files[mutation.file]]
        try:
            self._write(path, after)
            if path.suffix != ".py":
                return self._rebuild(path) or self._test(tests)
            if not _compiles(after):
                return Run("invalid", "does not compile")
            return self._test([mutation.file, *tests])  # its doctests first
        finally:
            self._write(path, before)
            if path.suffix != ".py":
                self._install(self._unchanged)

    def _write(self, path: Path, text: str) -> None:
        """Write a file with a time of its own: by time and size Python knows its bytecode."""
        path.write_text(text, encoding="utf-8")
        self._written += 1
        os.utime(path, (self._written, self._written))

    def _offer_only(self, isa: str) -> None:
        path = self.root / "csrc" / "cpu" / "dispatch.cpp"
        text = path.read_text(encoding="utf-8")
        others = re.compile(rf"tables\.push_back\(&k(?!{isa.capitalize()}\))\w+\);")
        text, count = others.subn("", text)
        if count != 2:
            raise MutantsError(f"{path} does not offer {isa} and two others any more")
        path.write_text(text, encoding="utf-8")
        self.units = [
            unit
            for unit in self.units
            if not unit.name.startswith("kernels_") or unit.stem == f"kernels_{isa}"
        ]

    def _object(self, unit: Path) -> Path:
        return self.objects / f"{unit.stem}.o"

    def _rebuild(self, changed: Path) -> Run | None:
        """Compile what includes a file, beside the objects of the unchanged sources."""
        folder = self.objects / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        linked, same = [], True
        for unit in self.units:
            old, new = self._object(unit), folder / f"{unit.stem}.o"
            if str(changed) in old.with_suffix(".d").read_text():
                if self._compile(unit, new):
                    return Run("invalid", "does not compile")
                same &= old.read_bytes() == new.read_bytes()
                linked.append(new)
            else:
                linked.append(old)
        if same:
            return Run("equivalent", "compiles to the same code")
        extension = folder / self._unchanged.name
        self._link(linked, extension)
        self._install(extension)
        return None

    def _compile(self, unit: Path, into: Path) -> str:
        """Compile one source; returns what the compiler complains of."""
        command = [
            *(flag for flag in self.compiler if flag != "-O3"), "-O1", "-w", "-fPIC", "-DNDEBUG",
            "-fwrapv", "-DSPARSECONV_WITH_CUDA=0", "-DTORCH_EXTENSION_NAME=_C",
            "-DTORCH_API_INCLUDE_EXTENSION_H", f"-I{sysconfig.get_path('include')}",
            *(f"-I{path}" for path in include_paths()),
            "-MMD", "-MF", into.with_suffix(".d"), "-c", unit, "-o", into,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stderr or "no reason given") if done.returncode else ""

    @property
    def _unchanged(self) -> Path:
        return self.objects / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"

    def _install(self, extension: Path) -> None:
        shutil.copy2(extension, self.root / "sparseconv" / extension.name)

    def _link(self, objects: Sequence[Path], target: Path) -> None:
        command = [
            self.compiler[0], "-shared", "-fopenmp", *objects, "-o", target,
            *(f"-L{path}" for path in library_paths()),
            "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python",
        ]  # fmt: skip
        # Kernels of instruction sets that are not offered are missing.
        subprocess.run([*command, "-Wl,--unresolved-symbols=ignore-all"], check=True)

    def _test(self, tests: Sequence[str]) -> Run:
        """Run tests until one fails, in a fork that is a process group of its own."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            self._run_pytest(tests)
        deadline = time.monotonic() + RUN_LIMIT
        ended, status = 0, 0
        while not ended and time.monotonic() < deadline:
            time.sleep(0.05)
            ended, status = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and whatever the tests have started
        if not ended:
            os.waitpid(child, 0)
            return Run("timeout", f"{RUN_LIMIT} s")
        return verdict(os.waitstatus_to_exitcode(status), self.output.read_text(errors="replace"))

    def _run_pytest(self, tests: Sequence[str]) -> NoReturn:
        code: int = pytest.ExitCode.INTERNAL_ERROR
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
            os.chdir(self.root)
            os.environ["PYTHONPATH"] = str(self.root)
            sys.path.insert(0, str(self.root))
            for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
                del sys.modules[name]
            options = (f"faulthandler_timeout={TEST_LIMIT}", "faulthandler_exit_on_timeout=true")
            words = ["-x", "-p", "no:cacheprovider", "--tb=no", "-rfE", *tests]
            code = pytest.main([*(f"--override-ini={option}" for option in options), *words])
        finally:
            sys.stdout.flush()
            os._exit(code)


def verdict(code: int, output: str) -> Run:
    """What pytest's exit code and words say of a mutant."""
    if code == pytest.ExitCode.OK:
        return Run("survived")
    if "Timeout (" in output:
        place = re.search(r'File "[^"]*/(test_\w+\.py)", line \d+ in (test_\w+)', output)
        return Run("timeout", "::".join(place.groups()) if place else f"{TEST_LIMIT} s")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    return Run("killed", failed[1] if failed else f"the tests ended with code {code}")


def _compiles(text: str) -> bool:
    try:
        compile(text, "", "exec")
    except SyntaxError:
        return False
    return True
