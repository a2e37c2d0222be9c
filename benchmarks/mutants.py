"""``make mutants``: do the tests notice when the code is wrong?

A seeded sample of small changes (``mutations.py``) is made one at a time in a copy of the tree, and
the tests of the changed file run until one fails. A change that compiles to the same code is
equivalent; what else survives gets a test, or an explanation in ``mutants_explained.json``. Results
are saved after every mutant: started again, the run goes on where it stopped. ``--isa`` compiles
one instruction set only, which is quick; ``--retry`` judges survivors again, by the tests of now.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.mutant_tree import MutantsError, Run, Tree
from benchmarks.mutations import Mutation, identity, mutations

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "reliability" / "mutants.json"

KERNELS = (
    "test_kernels.py",
    "test_fprop_conv1x1.py",
    "test_ops.py",
    "test_inference.py",
    "test_fused_guard.py",
)
OPS = (
    "test_limits.py",
    "test_ops.py",
    "test_kernels.py",
    "test_fprop_conv1x1.py",
    "test_inference.py",
)
FUSED = (
    "test_fused.py",
    "test_fused_ops.py",
    "test_fused_guard.py",
    "test_fprop_conv1x1.py",
    "test_block.py",
)
LAYERS = ("test_modules.py", "test_state_dict.py")
DST = ("test_dst_properties.py", "test_dst.py", "test_dst_gradient.py", "test_dst_state.py")
# What is changed, and the files of tests that run then, the likeliest to notice first.
FILES: dict[str, tuple[str, ...]] = {
    **{f"csrc/cpu/{name}": KERNELS for name in (
        "tile.inl", "correlate.inl", "wgrad.inl", "layout.cpp", "plan.cpp")},
    **{f"csrc/cpu/{name}": OPS for name in ("fprop_cpu.cpp", "dgrad_cpu.cpp", "wgrad_cpu.cpp")},
    "csrc/cpu/checks.cpp": (*OPS[:2], "test_fused_ops.py", *OPS[2:]),
    **{f"csrc/cpu/{name}": FUSED for name in (
        "pointwise.inl", "pointwise_cpu.cpp", "point_tile.inl", "columns.inl", "pool.inl",
        "pool_cpu.cpp", "batch_norm_relu.inl", "batch_norm_relu_cpu.cpp")},
    "sparseconv/pattern.py": (
        "test_pattern.py", *LAYERS, "test_dst_properties.py", "test_compile.py"),
    "sparseconv/pruning.py": (*DST, "test_modules.py", "test_dsn.py"),
    "sparseconv/dst.py": (*DST, "test_training.py", "test_checkpoint.py"),
    "sparseconv/_bilinear.py": (*LAYERS, *OPS, "test_dst_gradient.py", "test_autograd_tools.py"),
    "sparseconv/functional.py": (
        "test_functional.py", *LAYERS, *OPS, "test_dsn.py", "test_autograd_tools.py"),
    "sparseconv/_state_dict.py": (*LAYERS, "test_inference_changes.py"),
    "sparseconv/checkpoint.py": ("test_checkpoint.py", "test_training.py"),
}  # fmt: skip

Judge = Callable[[Mutation], Run]


def sample(root: Path, files: Sequence[str], count: int, seed: int) -> list[tuple[str, Mutation]]:
    """Draw mutants, with their names, from all files together.

    A larger ``count`` draws the same ones and then others; so does a tree of which little changed.
    """
    found = []
    for file in files:
        source = (root / file).read_text(encoding="utf-8")
        found += [(identity(mutation, source), mutation) for mutation in mutations(file, source)]
    found.sort(key=lambda pair: random.Random(f"{seed} {pair[0]}").random())
    return found[:count]


def campaign(
    root: Path,
    chosen: Sequence[tuple[str, Mutation]],
    judge: Judge,
    results: Path,
    facts: Mapping[str, Any],
    *,
    retry: bool = False,
) -> dict[str, Any]:
    """Judge mutants that have no result yet, or those that survived; save after each.

    Args:
        root: the tree that the mutations were made for.
        chosen: names and mutations.
        judge: changes the tree and runs the tests.
        results: JSON, read first if it exists.
        facts: what is written beside the results.
        retry: judge those that survived, and no others.
    """
    content = json.loads(results.read_text()) if results.exists() else {"mutants": []}
    known = {row["id"]: row for row in content["mutants"]}
    for number, (name, mutation) in enumerate(chosen, 1):
        survived = name in known and known[name]["outcome"] == "survived"
        if not survived if retry else name in known:
            continue
        start = time.monotonic()
        run = judge(mutation)
        row = known[name] = {
            "id": name,
            **_described(mutation, (root / mutation.file).read_text(encoding="utf-8")),
            "outcome": run.outcome,
            "by": run.by,
            "seconds": round(time.monotonic() - start, 1),
        }
        rows = sorted(known.values(), key=lambda other: (other["file"], other["line"]))
        content = {**facts, "mutants": rows}
        results.parent.mkdir(parents=True, exist_ok=True)
        partial = results.with_name(results.name + ".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(results)
        print(
            f"{number}/{len(chosen)} {row['outcome']} in {row['seconds']} s: {row['file']}:"
            f"{row['line']} {row['old']!r} -> {row['new']!r} {row['by']}",
            flush=True,
        )
    return content


def _described(mutation: Mutation, source: str) -> dict[str, Any]:
    begin = source.rfind("\n", 0, mutation.start) + 1
    return {
        "file": mutation.file,
        "line": source.count("\n", 0, mutation.start) + 1,
        "kind": mutation.kind,
        "text": source[begin:].partition("\n")[0].strip(),
        "old": source[mutation.start : mutation.end],
        "new": mutation.new,
    }


def about() -> dict[str, Any]:
    """The machine, and how the kernels are compiled.

    From a process of its own: this one must not import the package, or the tests would see it.
    """
    code = (
        "import json; from benchmarks import counts; from sparseconv.measure.timing import machine;"
        "print(json.dumps([machine(), [counts.compiler(), *counts.compile_flags()]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    machine, compiler = json.loads(done.stdout.splitlines()[-1])
    return {"machine": machine, "compiler": compiler}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutants", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--count", type=int, default=400, help="mutants to draw, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isa", choices=("avx512", "avx2", "baseline"), help="default: all")
    parser.add_argument("--retry", action="store_true", help="judge the survivors, and no others")
    parser.add_argument("--files", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, help="for the copy of the tree; default: temporary")
    arguments = parser.parse_args(argv)
    facts = about()
    with tempfile.TemporaryDirectory(prefix="sparseconv-mutants-") as temporary:
        folder = arguments.folder or Path(temporary)
        compiler = facts.pop("compiler")
        words = ["python -m benchmarks.mutants", *(sys.argv[1:] if argv is None else argv)]
        facts |= {"command": " ".join(words), "seed": arguments.seed, "drawn": arguments.count}
        try:
            tree = Tree(ROOT, folder, FILES, compiler, isa=arguments.isa)
            print("compiling, and running all tests once", flush=True)
            tree.prepare()
        except MutantsError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        chosen = sample(tree.root, arguments.files, arguments.count, arguments.seed)
        content = campaign(
            tree.root, chosen, tree.judge, arguments.results, facts, retry=arguments.retry
        )
    print(dict(Counter(row["outcome"] for row in content["mutants"])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
