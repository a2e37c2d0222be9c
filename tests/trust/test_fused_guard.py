"""The ops around the sparse convolutions read nothing before or behind their inputs."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

PAGE = mmap.PAGESIZE


def between_guards(tensor: Tensor, at_end: bool) -> Tensor:
    """Copy a tensor to the beginning or end of memory around which nothing may be read."""
    size = tensor.numel() * tensor.element_size()
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (start, start + (pages + 1) * PAGE):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), 0) == 0
    offset = PAGE + (pages * PAGE - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return flat.copy_(tensor.flatten()).view(tensor.shape)


def run() -> None:
    from sparseconv.ops.backends import extension

    assert extension is not None
    ops = torch.ops.sparseconv
    for isa in extension.isas():
        os.environ["SPARSECONV_CPU_ISA"] = isa
        for dtype in (torch.float32, torch.float64):
            for channels in (1, 3, 7, 8, 9, 15, 16, 17, 33):
                for length in (1, 2, 7, 16, 33):
                    for at_end in (False, True):

                        def put(*shape: int, dtype=dtype, at_end=at_end) -> Tensor:
                            return between_guards(torch.rand(shape, dtype=dtype), at_end)

                        x, v = put(2, channels, length), [put(channels) for _ in range(4)]
                        for rows in (1, 5, 17):
                            weight = put(rows, channels, 1)
                            grad = put(2, rows, length)
                            ops.pointwise_fprop(x, weight)
                            ops.pointwise_dgrad(grad, weight)
                            ops.pointwise_wgrad(grad, x)
                        ops.adaptive_avg_pool1d(x, 5)
                        ops.adaptive_avg_pool1d_backward(x, 40)
                        ops.batch_norm_relu(x, *v, 0.1, 1e-5)
                        ops.batch_norm_relu_backward(put(2, channels, length), x, *v)
    print("nothing was touched")


@pytest.mark.promise("P5")
@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are set up for Linux")
def test_guard_pages(count_cases) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "nothing was touched\n"), done.stderr
    count_cases(9 * 5 * 2 * 2)


if __name__ == "__main__":
    run()
