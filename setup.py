"""The extension list; everything else is in pyproject.toml.

torch is not a build requirement on purpose: an isolated build would download the newest torch
(several GB with CUDA) and build against that. With torch present, use
``pip install --no-build-isolation .``; without it, or without a compiler, the package installs
without the extension and says so when asked (``python -m sparseconv info``).
"""

import os
import sys
from pathlib import Path

from setuptools import setup
from setuptools.errors import CCompilerError, ExecError, PlatformError

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError:
    print(
        "sparseconv: torch is not importable here, the C++ extension is left out", file=sys.stderr
    )
    extensions, commands = [], {}
else:

    class OptionalBuild(BuildExtension):
        """Builds the extension, or leaves it out with a word of why, unless it is demanded."""

        def run(self):
            try:
                super().run()
            except (CCompilerError, ExecError, PlatformError, RuntimeError, OSError) as error:
                if force == "1":
                    raise
                print(f"sparseconv: the C++ extension is left out: {error}", file=sys.stderr)

    # at::parallel_for is a template: it runs on torch's pool only if compiled as torch was.
    openmp = ["-fopenmp"] if torch.backends.openmp.is_available() else []
    # CUDA kernels where torch has CUDA and nvcc is found; FORCE_CUDA=0 leaves them out, and
    # FORCE_CUDA=1 refuses to. TORCH_CUDA_ARCH_LIST names the GPUs, as for any extension of torch.
    force = os.environ.get("FORCE_CUDA")
    found = torch.version.cuda is not None and CUDA_HOME is not None
    if force == "1" and not found:
        raise RuntimeError(
            "FORCE_CUDA=1 needs a torch with CUDA and nvcc, but torch.version.cuda is "
            f"{torch.version.cuda} and CUDA_HOME is {CUDA_HOME}; set CUDA_HOME, or unset FORCE_CUDA"
        )
    cuda = found and force != "0"
    folders = ["csrc", "csrc/cpu", *(["csrc/cuda"] if cuda else [])]
    extensions = [
        (CUDAExtension if cuda else CppExtension)(
            "sparseconv._C",
            sorted(
                str(path)
                for folder in folders
                for path in Path(folder).iterdir()
                if path.suffix in (".cpp", ".cu")
            ),
            define_macros=[("SPARSECONV_WITH_CUDA", str(int(cuda)))],
            # No -march and no -ffast-math: each ISA has its own target region. Contraction would
            # fuse where the kernels do not ask for it, and the bits would depend on the ISA.
            extra_compile_args={
                "cxx": [
                    "-O3",
                    "-g0",
                    "-std=c++20",
                    "-ffp-contract=off",
                    "-fvisibility=hidden",
                    *openmp,
                ],
                "nvcc": ["-O3", "-std=c++20"],
            },
            extra_link_args=openmp,
        )
    ]
    commands = {"build_ext": OptionalBuild}

setup(ext_modules=extensions, cmdclass=commands)
