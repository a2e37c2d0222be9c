"""Run in a fresh interpreter: what the installed package reports, and whether it computes.

``python installed_check.py [CASES] [BLOCKED ...]`` prints one line of JSON. It needs nothing but
the package and torch. Blocked modules cannot be imported, as if they were not installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).parents[1] / "support"))
# An editable installation of another tree would lend this one the modules that it lacks.
sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") != "_EditableFinder"]
n_cases, blocked = int(sys.argv[1]), sys.argv[2:]
sys.modules.update(dict.fromkeys(blocked))
import torch  # noqa: E402
import torch.utils.flop_counter  # noqa: E402 (imports Triton itself, where it is installed)
from torch.utils._pytree import tree_leaves  # noqa: E402

before = set(sys.modules)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import sparseconv as sc

    loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})

    import op_arguments
    import random_banks

    from sparseconv import testing
    from sparseconv.ops.backends import extension
    from sparseconv.rocket import kernel_features

    def same_everywhere(like: torch.Tensor | None) -> torch.Tensor | None:
        """Data for a tensor; torch.randn's last bits depend on the processor, these do not."""
        if like is None:
            return None
        generator = torch.Generator().manual_seed(like.numel())
        drawn = torch.randint(-(2**20), 2**20, like.shape, generator=generator)
        return (drawn / 2**18).to(like.dtype)

    def training_step() -> list[torch.Tensor]:
        """What a DSN's blocks compute; its head is torch's, with other bits elsewhere."""
        torch.manual_seed(0)
        model = sc.models.DSN(3, 4, nf=8).blocks
        for parameter in model.parameters():
            parameter.data = same_everywhere(parameter) / 16
        x = same_everywhere(torch.empty(5, 3, 70)).requires_grad_()
        y = model(x)
        y.backward(same_everywhere(y))
        torch.optim.SGD(model.parameters(), lr=2.0**-8).step()
        weights = list(model.parameters())
        return [y, x.grad, *(w.grad for w in weights), *weights, *model.buffers(), model(x)]

    def ops_in_their_order(dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """What every op on tensors in lanes returns, or of bfloat16 in rows."""

        def draw(size: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            return same_everywhere(torch.empty(size, dtype=dtype))

        with mock.patch.object(torch, "randn", draw):
            calls = op_arguments.lane_arguments(dtype)
        for name, arguments in calls.items():
            yield from tree_leaves(getattr(torch.ops.sparseconv, name)(*arguments))

    def raw(tensor: torch.Tensor) -> bytes:
        return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    # Every case on every instruction set: within the bound of float64, and the same bits.
    rng, digests = random.Random(7), set()
    isas = extension.isas() if extension is not None else [None]
    cases = [testing.random_case(rng) for _ in range(n_cases)]
    for isa in isas:
        digest = hashlib.sha256()
        if isa is not None:
            os.environ["SPARSECONV_CPU_ISA"] = isa
            assert extension.isa() == isa
            with mock.patch.object(extension, "has_fma", return_value=True):  # also imitated
                for tensor in training_step():
                    digest.update(raw(tensor))
                for dtype in (torch.float32, torch.float64):
                    for tensor in ops_in_their_order(dtype):
                        digest.update(raw(tensor))
            for seed in range(n_cases):
                problem = random_banks.Problem(("rocket", "minirocket")[seed % 2], seed)
                if not problem.bank.normalise:  # by numpy, whose sums differ as torch's do
                    digest.update(kernel_features(problem.series, problem.bank).tobytes())
        for case in cases:
            data = testing.Tensors(*map(same_everywhere, case.tensors()))
            x, values = data.input.requires_grad_(), data.values.requires_grad_()
            y = sc.sparse_conv1d(x, values, case.make_pattern(), data.bias, **case.options)
            got = (y, *torch.autograd.grad(y, (x, values), data.grad))
            plain = data._replace(input=x.detach(), values=values.detach())
            for tensor, (exact, bound) in zip(got, testing.expected(case, plain), strict=True):
                excess = (tensor.detach().double() - exact).abs() - bound
                assert not excess.numel() or excess.max() <= 0, repr(case)
                if extension is not None:
                    digest.update(raw(tensor))
        digests.add(digest.hexdigest())
    assert len(digests) == 1, "the instruction sets disagree"
    in_rows = hashlib.sha256()
    for twin in ("amx-emulated", "avx512bf16-emulated") if extension is not None else ():
        os.environ["SPARSECONV_CPU_ISA"] = twin
        assert extension.isa() == twin
        for tensor in ops_in_their_order(torch.bfloat16):
            in_rows.update(raw(tensor))
    os.environ.pop("SPARSECONV_CPU_ISA", None)

    model = torch.nn.Sequential(
        sc.SparseConv1d(2, 4, 5, density=0.5), torch.nn.BatchNorm1d(4), torch.nn.ReLU()
    )
    optimizer = torch.optim.Adam(model.parameters())
    dst = sc.DSTScheduler(model, optimizer, update_every=1, end_step=9)
    model(torch.ones(3, 2, 20)).sum().backward()
    optimizer.step()
    assert dst.step()
    sc.optimize_for_inference(model)(torch.ones(3, 2, 20))
    by_name = torch.compile(model, backend="sparseconv")(torch.ones(3, 2, 20))
    torch.testing.assert_close(by_name, model(torch.ones(3, 2, 20)))

result = {
    "file": sc.__file__, "python": sys.version.split()[0], "torch": torch.__version__,
    "backends": sc.available_backends(), "isas": isas,
    "bits": digests.pop() + in_rows.hexdigest(), "imported": loaded,
    "warnings": [str(w.message) for w in caught if "sparseconv" in str(w.message)],
}  # fmt: skip
print(json.dumps(result))
