"""Failures that users of similar libraries met.

One test for each, named after it; most promises have more tests elsewhere.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from child import PYTHONPATH, ROOT
from dst_runs import batches, same, spread, train_step, two_layers
from engines import ISAS
from machine_code import functions_of, leaks
from torch import Tensor, nn

from sparseconv import DSTScheduler, KernelCSR, SparseConv1d, sparse_conv1d
from sparseconv.ops.backends import extension
from sparseconv.reference import dense_weight


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Whole numbers so small that every sum of products is exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).float()


def gradients(function: Callable[..., Tensor], grad: Tensor, *leaves: Tensor) -> list[Tensor]:
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPARSECONV_CPU_ISA", request.param)
    return request.param


@pytest.mark.promise("P6")
@pytest.mark.parametrize("kind", ["transposed", "expanded", "sliced", "channels last"])
def test_wrong_gradients_for_a_non_contiguous_grad_output(kind: str, isa: str) -> None:
    pattern, x = KernelCSR.random((6, 4, 5), 50), whole(3, 4, 21)
    values = whole(50, seed=1)
    grad = {
        "transposed": whole(17, 6, 3).permute(2, 1, 0),
        "expanded": whole(3, 6, 1).expand(3, 6, 17),
        "sliced": whole(5, 12, 40)[1:4, ::2, 3:37:2],
        "channels last": whole(3, 17, 6).mT,
    }[kind]
    assert grad.shape == (3, 6, 17)
    assert not grad.is_contiguous()
    found = gradients(lambda x, v: sparse_conv1d(x, v, pattern), grad, x, values)
    dense = gradients(lambda x, v: F.conv1d(x, dense_weight(v, pattern)), grad, x, values)
    for got, want in zip(found, dense, strict=True):
        assert got.equal(want)


@pytest.mark.promise("P5")
def test_int32_overflow_of_strides(tmp_path: Path, isa: str) -> None:
    """Neighbours in batch, channel or time lie more than 2**31 elements apart (a sparse file)."""
    far = 2**31 + 5
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * far + 100)
    pattern, values = KernelCSR.full((2, 2, 2)), whole(8, seed=1)
    for strides in ((far, 40, 1), (20, far, 1), (9, 3, far)):
        size = (2, 2, 3) if strides[2] == far else (2, 2, 10)
        x = memory.as_strided(size, strides)
        x.copy_(whole(*size, seed=2))
        got = sparse_conv1d(x, values, pattern)
        grad = memory.as_strided(got.shape, strides, 50)
        grad.copy_(whole(*got.shape, seed=3))
        found = gradients(lambda x: sparse_conv1d(x, values, pattern), grad, x)
        near = gradients(lambda x: sparse_conv1d(x, values, pattern), grad.clone(), x.clone())
        assert all(a.equal(b) for a, b in zip([got, *found], [near[0], *near], strict=True))


@pytest.mark.promise("P5")
def test_int32_overflow_of_sizes(tmp_path: Path, isa: str) -> None:
    """A series of more than 2**31 samples, most of them jumped over by the stride."""
    length, stride, n = 2**31 + 2**26, 2**26, 33
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=length)
    x, series = memory.view(1, 1, length), torch.arange(1.0, n + 1)
    x[..., ::stride] = series
    pattern, values = KernelCSR.full((1, 1, 1)), torch.full((1,), 2.0, requires_grad=True)
    y = sparse_conv1d(x, values, pattern, stride=stride)
    assert y.flatten().equal(2 * series)
    y[..., -1].sum().backward()
    assert values.grad.item() == n
    narrow = sparse_conv1d(x[..., 2**31 - 8 :], torch.ones(1), KernelCSR.full((1, 1, 1)), stride=8)
    assert narrow[0, 0, 1] == x[0, 0, 2**31]


@pytest.mark.promise("P2")
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 3}], ids=str)
def test_last_row_or_last_two_positions_at_odd_lengths(
    options: dict[str, int], isa: str, count_cases: Callable[[int], None]
) -> None:
    for length in range(1, 70, 2):
        for outputs in (1, 3, 7):
            pattern = KernelCSR.random((outputs, 3, 3), 8 * outputs)
            values, x = whole(pattern.nnz, seed=length), whole(2, 3, length, seed=outputs)

            def sparse(x: Tensor, v: Tensor, of: KernelCSR = pattern) -> Tensor:
                return sparse_conv1d(x, v, of, padding=3, **options)

            def dense(x: Tensor, v: Tensor, of: KernelCSR = pattern) -> Tensor:
                return F.conv1d(x, dense_weight(v, of), padding=3, **options)

            grad = whole(*dense(x, values).shape, seed=3)
            found, wanted = (gradients(f, grad, x, values) for f in (sparse, dense))
            assert all(a.equal(b) for a, b in zip(found, wanted, strict=True)), (length, outputs)
            count_cases(1)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody has written to holds NaN."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(9).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.promise("P4")
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("mode", ["zeros", "replicate", "circular"])
def test_no_active_weights_leave_memory_uninitialised(mode: str, isa: str) -> None:
    nothing = torch.zeros(6, 4, 5, dtype=torch.bool)
    one, channel = nothing.clone(), nothing.clone()
    one[2, 1, 3] = True
    channel[:, 0] = True
    for mask in (nothing, one, channel):
        for batch in (0, 1, 3):
            pattern = KernelCSR.from_mask(mask)
            x, values, bias = whole(batch, 4, 30), whole(pattern.nnz, seed=1), whole(6, seed=2)

            def sparse(x: Tensor, v: Tensor, b: Tensor, of: KernelCSR = pattern) -> Tensor:
                return sparse_conv1d(x, v, of, b, padding=2, padding_mode=mode)

            def dense(x: Tensor, v: Tensor, b: Tensor, of: KernelCSR = pattern) -> Tensor:
                padded = F.pad(x, (2, 2), "constant" if mode == "zeros" else mode)
                return F.conv1d(padded, dense_weight(v, of), b)

            y = sparse(x, values, bias)
            assert y[:, ~mask.any((1, 2))].equal(
                bias[~mask.any((1, 2))][:, None].expand(batch, -1, 30)
            )
            if batch:
                found, wanted = (
                    gradients(f, whole(*y.shape, seed=3), x, values, bias) for f in (sparse, dense)
                )
                assert all(a.equal(b) for a, b in zip(found, wanted, strict=True))


IN_PLACE: dict[str, Callable[[nn.Parameter], Any]] = {
    "SGD": lambda p: torch.optim.SGD([p], 0.1).step(),
    "SGD foreach": lambda p: torch.optim.SGD([p], 0.1, foreach=True).step(),
    "SGD fused": lambda p: torch.optim.SGD([p], 0.1, fused=True).step(),
    "Adam fused": lambda p: torch.optim.Adam([p], 0.1, fused=True).step(),
    "data": lambda p: p.data.mul_(2),
    "numpy": lambda p: p.detach().numpy().__imul__(2),
    "new memory at the old address": lambda p: setattr(p, "data", p.data.clone().mul_(2)),
}


@pytest.mark.promise("P7")
@pytest.mark.parametrize("name", IN_PLACE)
def test_a_cache_serves_old_weights_after_an_in_place_step(name: str) -> None:
    """Some of these count no version, and some memory comes back at the same address."""
    layer = SparseConv1d(4, 6, 5, padding=2)
    x = torch.randn(2, 4, 30)
    for _ in range(5):
        layer.zero_grad()
        before = layer(x)
        before.square().sum().backward()
        IN_PLACE[name](layer.values)
        after = layer(x)
        assert not after.equal(before)
        fresh = SparseConv1d(4, 6, 5, padding=2, pattern=layer.pattern)
        fresh.load_state_dict(layer.state_dict())
        assert after.equal(fresh(x))
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(layer(leaf).sum(), leaf)
        assert grad.equal(torch.autograd.grad(fresh(leaf).sum(), leaf)[0])


@pytest.mark.promise("P9")
def test_moments_do_not_follow_their_weight() -> None:
    model = two_layers()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    dst = DSTScheduler(model, optimizer, update_every=5, end_step=99)
    for x, step in zip(batches(), range(1, 6), strict=False):
        train_step(model, optimizer, x)
        layer = model[2]
        before = {
            key: spread(optimizer.state[layer.values][key], layer.pattern)
            for key in ("exp_avg", "exp_avg_sq")
        }
        moved = dst.step()
        assert moved == (step == 5)
    survivors = layer.values != 0
    at = layer.pattern.positions()
    assert 0 < int(survivors.sum()) < layer.pattern.nnz
    for key, old in before.items():
        moments = optimizer.state[layer.values][key]
        assert moments[survivors].equal(old[at[survivors]])
        assert not moments[~survivors].any()


def run_from(state: Any, n: int) -> tuple[Any, nn.Module]:
    """Train ``n`` steps from the start, or from a checkpoint."""
    model = two_layers(seed=0 if state is None else 9)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    dst = DSTScheduler(model, optimizer, update_every=3, end_step=99, grow="gradient")
    parts = (model, optimizer, dst)
    if state is not None:
        for part, its in zip(parts, state, strict=True):
            part.load_state_dict(its)
    for step, x in zip(range(20), batches(), strict=False):
        if dst.step_count <= step < n:
            train_step(model, optimizer, x)
            dst.step()
    return [part.state_dict() for part in parts], model


@pytest.mark.promise("P9")
def test_masks_are_missing_from_the_checkpoint(tmp_path: Path) -> None:
    state, model = run_from(None, 7)
    torch.save(state[0], tmp_path / "model.pt")
    other = two_layers(seed=3)
    assert other[0].pattern != model[0].pattern
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert other[0].pattern == model[0].pattern
    x = next(batches())
    assert other(x).equal(model(x))


@pytest.mark.promise("P9")
def test_a_resumed_run_ignores_the_mask(tmp_path: Path) -> None:
    expected, through = run_from(None, 14)
    torch.save(run_from(None, 7)[0], tmp_path / "run.pt")
    found, resumed = run_from(torch.load(tmp_path / "run.pt", weights_only=True), 14)
    assert found[2]["updates"] == 4
    assert same(found, expected)
    for one, other in zip(resumed, through, strict=True):
        if isinstance(one, SparseConv1d):
            assert one.pattern == other.pattern
            assert not one.dense_weight()[~one.pattern.to_mask()].any()


FORK = """
import os
import torch
from test_processes import ends
from sparseconv import SparseConv1d

torch.set_num_threads(2)
torch.manual_seed(0)
# Large enough for the kernels to share the work out, too small for torch's own loops to do it.
layer = SparseConv1d(16, 16, 39, padding="same", padding_mode="replicate", density=0.3)
x, grad = torch.randn(2, 1, 16, 1500)

def gradients():
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    return (y.detach(), *torch.autograd.grad(y, (leaf, layer.values), grad))

expected = gradients()
assert len(os.listdir("/proc/self/task")) > 1, "the kernels have not used a second thread"

def child():
    for got, want in zip(gradients(), expected, strict=True):
        assert got.equal(want)

assert ends(child), "a forked child waits for threads that it does not have"
"""


@pytest.mark.promise("P8")
@pytest.mark.tool("os.fork after use", "works", "a forked child computes on one thread")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_openmp_threads_deadlock_after_a_fork() -> None:
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    environment.pop("OMP_NUM_THREADS", None)
    child = [sys.executable, "-c", FORK]
    run = subprocess.run(child, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


BUILD = (ROOT / "setup.py").read_text() + "".join(
    path.read_text() for path in sorted((ROOT / "csrc").rglob("*")) if path.is_file()
)


def words_of(source: str) -> set[str]:
    """Compiler flags, without what comments say."""
    code = re.sub(r"//.*|(?m:^\s*#\s.*$)", "", source)
    return set(re.findall(r"-[mfO][\w=-]+", code))


@pytest.mark.promise("P8")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86's MXCSR")
def test_fast_math_changes_denormals_for_the_whole_process() -> None:
    """An object linked with -ffast-math sets two bits of this register when it is loaded."""
    flags = words_of(BUILD)
    assert "-ffp-contract=off" in flags  # so that the search sees what there is
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & flags
    code = (
        "import ctypes, ctypes.util, torch\n"
        "libm = ctypes.CDLL(ctypes.util.find_library('m'))\n"
        "seen = []\n"
        "def look():\n"
        "    state = (ctypes.c_uint32 * 8)()\n"
        "    libm.fegetenv(state)\n"
        "    seen.append(state[7] & 0xffc0)\n"
        "look()\n"
        "import sparseconv._C\n"
        "look()\n"
        "print(*seen)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    before, after = map(int, run.stdout.split())
    assert before == after, run.stderr
    assert after & 0x8040 == 0
    assert (torch.full((64,), torch.finfo(torch.float32).tiny) * 0.5 > 0).all()


@pytest.fixture(scope="module")
def listing() -> str:
    if extension is None or platform.machine() != "x86_64" or shutil.which("objdump") is None:
        pytest.skip("needs objdump, and the extension built for x86_64")
    command = ["objdump", "-d", "--no-show-raw-insn", "-C", str(extension.__file__)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.promise("P10")
def test_march_native_dies_with_sigill(listing: str) -> None:
    """Everything but the kernels of an instruction set runs on any x86-64."""
    assert not {word for word in words_of(BUILD) if word.startswith(("-march", "-mtune", "-mavx"))}
    assert not leaks(listing)
    functions = functions_of(listing)
    assert any("baseline" in name for name in functions)
    foreign = listing + "\n0000000000000000 <PyInit__C>:\n  10:\tvmovups (%rax),%ymm0\n"
    assert leaks(foreign) == ["PyInit__C: vmovups (%rax),%ymm0"]  # what it would look like


@pytest.mark.promise("P10")
def test_avx512_leaks_into_other_code(listing: str) -> None:
    """Also into inline templates, of which the linker keeps one for everybody."""
    functions = functions_of(listing)
    wide = [name for name, code in functions.items() if any("%zmm" in line for line in code)]
    assert len(wide) > 20
    assert all("sparseconv::avx512::" in name for name in wide)
    for name in ("std::vector<int>::push_back(int&&)", "sparseconv::avx2::pack(long)"):
        assert leaks(f"0000000000000000 <{name}>:\n  10:\tvaddps %zmm1,%zmm2,%zmm3\n")
    assert leaks(
        "0000000000000000 <sparseconv::avx2::pack(long)>:\n  1:\tvpxor %ymm16,%ymm1,%ymm2\n"
    )
    assert not leaks(
        "0000000000000000 <sparseconv::avx2::pack(long)>:\n  1:\tvpxor %ymm1,%ymm1,%ymm2\n"
    )
