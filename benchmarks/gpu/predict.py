"""``python -m benchmarks.gpu.predict``: how long GPU kernels would take, from their machine code.

nvcc and Triton compile the kernels for sm_90; the binding launches them for the layer of a Dynamic
Sparse Network (16 series, 47 -> 141 channels, 39 taps) on a driver that records; and the blocks of
one multiprocessor are run (warp.py) and replayed clock by clock. So whatever the kernels, their cut
and their plan are, trip counts are the real ones.

What is modelled and what is not: replay.py. An H100 took 1.12 to 1.32 times as long for the CUDA
kernels (with the packing of their inputs), and 1.0 to 2.6 times for Triton's.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu.replay import Replay, replay
from benchmarks.gpu.sass import Instruction, decode
from benchmarks.gpu.warp import PARAMETERS, SHARED_BASE, Lanes, Warp

ROOT = Path(__file__).parents[2]
CLOCK, PROCESSORS = 1.98e9, 132  # H200: clocks a second, multiprocessors
L1_BYTES, SHARED_BYTES, REGISTERS = 256 << 10, 228 << 10, 1 << 16  # of a multiprocessor
SHARED_OBJECT = ("-Xcompiler=-fPIC",)
LENGTHS = (150, 512, 2709)


class Kernel(NamedTuple):
    """A kernel in a file of nvcc or Triton."""

    code: list[Instruction]
    registers: int
    shared: int  # bytes, with the system's
    parameters: list[tuple[int, int]]  # offset and size of each

    def packed(self, arguments: Iterable[bytes]) -> bytes:
        """Arguments as they lie in constant memory; those that nobody gives are 0."""
        memory = bytearray(sum(self.parameters[-1]))
        for (offset, size), argument in zip(self.parameters, arguments, strict=False):
            memory[offset : offset + size] = argument
        return bytes(memory)


class Launch(NamedTuple):
    kernel: Kernel
    grid: Sequence[int]
    threads: int
    shared: int
    arguments: bytes  # as they lie in constant memory

    @property
    def slots(self) -> int:
        """How many blocks share a multiprocessor."""
        warps = -(-self.threads // 32)
        registers = -(-self.kernel.registers // 8) * 8 * 32 * warps
        return min(
            REGISTERS // registers, SHARED_BYTES // (self.kernel.shared + self.shared),
            64 // warps, 32,
        )  # fmt: skip

    def warps(self, index: int) -> list[Warp]:
        x, y, _ = self.grid
        constants: Lanes = np.zeros(PARAMETERS // 4, np.int64)
        constants[:6] = [self.threads, 1, 1, *self.grid]
        constants = np.append(constants, np.frombuffer(self.arguments, np.uint32))
        shared: Lanes = np.zeros((self.kernel.shared + self.shared) // 4 + 64, np.int64)
        block = index % x, index // x % y, index // (x * y)
        code = self.kernel.code
        return [Warp(code, constants, shared, i, block) for i in range(-(-self.threads // 32))]


def cuobjdump() -> str:
    """That beside nvcc, or the one that Triton brings."""
    if shutil.which("nvcc"):
        command = ["nvcc", "--dryrun", "-c", "x.cu"]
        said = subprocess.run(command, capture_output=True, text=True).stderr
        here = re.search(r"_HERE_=(\S+)", said)
        if here and (found := shutil.which("cuobjdump", path=here[1])):
            return found
    from triton import knobs

    return str(knobs.nvidia.cuobjdump.path)


def run(*command: Any) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout


def kernels_in(path: Path) -> dict[str, Kernel]:
    """The kernels of an object or cubin, by their symbols."""
    dump = cuobjdump()
    texts = re.split(r"\tFunction : (\S+)", run(dump, "-sass", path))[1:]
    used = re.findall(r"Function (\S+):\s+REG:(\d+).*?SHARED:(\d+)", run(dump, "-res-usage", path))
    elf = run(dump, "-elf", path)
    tables = re.split(r"\n\.nv\.info\.(\S+)", elf)[1:]
    place = r"Ordinal\s*: \w+\s+Offset\s*: (0x\w+)\s+Size\s*: (0x\w+)"
    parameters = {
        name: sorted((int(offset, 16), int(size, 16)) for offset, size in re.findall(place, table))
        for name, table in zip(tables[::2], tables[1::2], strict=True)
    }
    codes = dict(zip(texts[::2], texts[1::2], strict=True))
    return {
        name: Kernel(
            decode(codes[name]), int(registers), max(SHARED_BASE, int(shared)), parameters[name]
        )
        for name, registers, shared in used
    }


Launched = Callable[[Launch, str], None]


def cuda_kernels(folder: Path, launched: Launched) -> tuple[Any, ...]:
    """Build the binding on a driver that records: fprop, dgrad and wgrad, and what to keep."""
    import torch

    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    kernels: dict[str, Kernel] = {}
    objects = [folder / f"{source.stem}.o" for source in sources]
    for source, built in zip(sources, objects, strict=True):
        run("nvcc", "-O3", "-std=c++20", "-arch=sm_90", *SHARED_OBJECT, "-c", source, "-o", built)
        kernels |= kernels_in(built)
    for name in ("CUDAException.h", "CUDAGuard.h", "CUDAStream.h"):
        header = folder / "c10" / "cuda" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.touch()
    include, library = Path(torch.__file__).parent / "include", folder / "launches.so"
    run(
        "nvcc", "-std=c++20", *SHARED_OBJECT, "-shared", "-cudart=none", "-o", library,
        f"-I{folder}", f"-I{ROOT / 'csrc'}", "-isystem", include,
        "-isystem", include / "torch/csrc/api/include",
        Path(__file__).with_name("launches.cpp"), *objects,
        f"-L{include.parent / 'lib'}", "-ltorch_cpu", "-lc10",
    )  # fmt: skip
    three = ctypes.POINTER(ctypes.c_uint32)

    @ctypes.CFUNCTYPE(
        None, ctypes.c_char_p, three, three, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)
    )
    def launch(name: bytes, grid: Any, block: Any, shared: int, arguments: Any) -> None:
        kernel = kernels[name.decode()]
        parts = [ctypes.string_at(arguments[i], kernel.parameters[i][1])
                 for i in range(len(kernel.parameters))]  # fmt: skip
        launched(Launch(kernel, grid[:3], block[0], shared, kernel.packed(parts)), name.decode())

    torch.ops.load_library(library)
    ctypes.CDLL(str(library)).on_launch(launch)
    # So the plans are those of the GPU; and what is called back must not be collected.
    torch.Tensor.is_cuda = True  # type: ignore[assignment]
    from sparseconv.ops import calls

    return calls, launch


TYPES = {"float32": "fp32", "int32": "i32", "int64": "i64"}


def triton_kernels(folder: Path, launched: Launched) -> tuple[Any, ...]:
    """fprop, dgrad and wgrad, compiled at each launch and specialized as on a GPU."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sparseconv.ops import triton as ops
    from sparseconv.ops.triton import kernels, launch

    class Recorder(NamedTuple):
        kernel: Any

        def __getitem__(self, grid: Sequence[int]) -> Callable[..., None]:  # type: ignore[override]
            return lambda *given, **options: self.launch(grid, given, options)

        def launch(self, grid: Sequence[int], given: Any, options: dict[str, Any]) -> None:
            names = self.kernel.arg_names
            values = dict(zip(names, given, strict=False))
            values |= {name: options.pop(name) for name in names if name in options}
            signature, constants, attributes, passed = {}, {}, {}, []
            for i, parameter in enumerate(self.kernel.params):
                value, fixed = values[parameter.name], parameter.do_not_specialize
                if isinstance(value, torch.Tensor):
                    signature[parameter.name] = "*" + TYPES[str(value.dtype)[6:]]
                    value = value.data_ptr()
                elif parameter.is_constexpr or value is None or (value == 1 and not fixed):
                    signature[parameter.name], constants[parameter.name] = "constexpr", value
                    continue
                else:
                    signature[parameter.name] = "i32"
                size = 8 if signature[parameter.name][0] == "*" else 4
                passed.append(value.to_bytes(size, "little", signed=True))
                if value % 16 == 0 and not fixed:
                    attributes[i,] = [["tt.divisibility", 16]]
            source = ASTSource(self.kernel, signature, constants, attributes)
            binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            (folder / "kernel.cubin").write_bytes(binary.asm["cubin"])
            (kernel,) = kernels_in(folder / "kernel.cubin").values()
            threads, shared = 32 * binary.metadata.num_warps, binary.metadata.shared
            grid = (*grid, 1, 1)[:3]
            launched(
                Launch(kernel, grid, threads, shared, kernel.packed(passed)), self.kernel.__name__
            )

    for name, kernel in vars(kernels).copy().items():
        if isinstance(kernel, triton.runtime.jit.JITFunction) and name[0] != "_":
            setattr(kernels, name, Recorder(kernel))
    for name in ("fprop", "dgrad", "wgrad"):
        setattr(ops, f"_{name}", getattr(launch, name))
    return (ops,)


BACKENDS = {"triton": triton_kernels, "cuda": cuda_kernels}


def predicted(launch: Launch, first: int) -> Replay:
    """The replay of the multiprocessor that gets this block first."""
    blocks = range(first, int(np.prod(launch.grid)), PROCESSORS)
    cache = L1_BYTES - launch.slots * (launch.kernel.shared + launch.shared)
    return replay(launch.kernel.code, map(launch.warps, blocks), launch.slots, cache)


def rows(
    lengths: Sequence[int], backends: Sequence[str], processors: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Predict all computations of all lengths; a backend that cannot be compiled says why."""
    sys.modules["sparseconv._C"] = None  # type: ignore[assignment]  # its ops would be the CPU's
    warnings.filterwarnings("ignore", "sparseconv computes with its dense reference")
    from sparseconv.bench.cases import CASES, Case
    from sparseconv.bench.run import COMPUTATIONS, sparse_calls

    found: list[tuple[str, Replay] | Exception] = []

    def launched(launch: Launch, symbol: str) -> None:
        try:
            name = re.sub(r".*\d([a-z_]+)_kernel.*", r"\1", symbol)
            numbers = [name, *re.findall(r"Li(\d+)E", symbol)]
            replays = [predicted(launch, first) for first in processors]
            found.append((" ".join(numbers), max(replays, key=lambda replay: replay.clocks)))
        except Exception as error:  # which the driver's callback could not pass on
            found.append(error)

    with tempfile.TemporaryDirectory() as folder:
        for backend in backends:
            try:
                kernels, *_kept = BACKENDS[backend](Path(folder), launched)
            except (ImportError, RuntimeError, OSError) as error:
                yield {"backend": backend, "absent": str(error)}
                continue
            for length in lengths:
                case = Case(**(vars(CASES["dsn_evolved_L128"]) | {"length": length}))
                problem = case.build()
                for computation in COMPUTATIONS:
                    found.clear()
                    sparse_calls(kernels, problem)[computation]()
                    yield row_of(backend, computation, problem, found)


def row_of(backend: str, computation: str, problem: Any, found: Sequence[Any]) -> dict[str, Any]:
    from benchmarks.gpu.tables import PEAK

    what = {"backend": backend, "computation": computation, "length": problem.x.shape[2]}
    if error := next((one for one in found if isinstance(one, Exception)), None):
        return what | {"absent": f"{type(error).__name__}: {error}"}
    issued, waits = (sum((part[1][i] for part in found), Counter[str]()) for i in (1, 2))
    name, _ = max(found, key=lambda part: part[1].clocks)
    (limiter, most), *_ = waits.most_common()
    work = 2 * len(problem.values) * len(problem.x) * problem.grad.shape[2]
    return what | {
        "kernel": name,
        "us": round(1e6 * sum(part[1].clocks for part in found) / CLOCK, 1),
        "ffma": round(issued["FFMA"] / sum(issued.values()), 3),
        "limiter": f"{limiter} {most / sum(waits.values()):.0%}",
        "floor_us": round(1e6 * work / PEAK, 1),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="a JSON file of the rows")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--processors", type=int, nargs="+", default=[0],
                        help="multiprocessors to replay, of which the slowest counts")  # fmt: skip
    arguments = parser.parse_args(argv)
    # Not check_writable: nothing of sparseconv may be imported before its extension is hidden.
    if arguments.out and not os.access(arguments.out.parent, os.W_OK):
        parser.error(f"{arguments.out} cannot be written; choose another file")
    done = []
    for row in rows(arguments.lengths, arguments.backends, arguments.processors):
        print(*row.values(), sep="\t", flush=True)
        done.append(row)
    from benchmarks.gpu.tables import predictions
    from sparseconv.bench.document import write_json

    document = {"rows": [row for row in done if "us" in row]}
    print(predictions(document).markdown())
    if arguments.out:
        write_json(document, arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
