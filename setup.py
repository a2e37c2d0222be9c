"""The extension list; everything else is in pyproject.toml.

torch is not a build requirement on purpose: an isolated build would download the newest torch
(several GB with CUDA) and build against that. With torch present, use
``pip install --no-build-isolation .``; without it, or without a compiler, the package installs
without the extension and says so when asked (``python -m sparseconv info``).
"""

import os
import shutil
import subprocess
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
    # at::parallel_for is a template: it runs on torch's pool only if compiled as torch was.
    openmp = linked = ["-fopenmp"] if torch.backends.openmp.is_available() else []
    if openmp and sys.platform == "darwin":  # Apple's clang knows the option, its driver does not
        found = (Path(torch.__file__).parent / "lib" / "libomp.dylib").exists()
        openmp = ["-Xclang", "-fopenmp"] if found else []
        linked = ["-lomp", "-Wl,-rpath,@loader_path/../torch/lib"] if found else []
    if not openmp:
        print("sparseconv: torch has no OpenMP here, kernels run on one thread", file=sys.stderr)
    # CUDA kernels where torch has CUDA and nvcc is found; FORCE_CUDA=0 leaves them out, and
    # FORCE_CUDA=1 refuses to. TORCH_CUDA_ARCH_LIST names the GPUs, as for any extension of torch.
    force = os.environ.get("FORCE_CUDA")
    # torch takes any folder for CUDA_HOME; that of an image for running programs has no nvcc.
    nvcc = CUDA_HOME and shutil.which("nvcc", path=str(Path(CUDA_HOME) / "bin"))
    found = torch.version.cuda is not None and bool(nvcc)
    if force == "1" and not found:
        raise RuntimeError(
            "FORCE_CUDA=1 needs a torch with CUDA and nvcc, but torch.version.cuda is "
            f"{torch.version.cuda}, and nvcc is {nvcc or 'not found'} (CUDA_HOME is {CUDA_HOME}); "
            "set CUDA_HOME, or unset FORCE_CUDA"
        )
    cuda = found and force != "0"

    def extension(cuda):
        return (CUDAExtension if cuda else CppExtension)(
            "sparseconv._C",
            sorted(
                str(path)
                for path in Path("csrc").rglob("*")
                if path.suffix in (".cpp", ".cu") and (cuda or path.parent.name != "cuda")
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
                    *os.environ.get("SPARSECONV_CXXFLAGS", "").split(),
                ],
                "nvcc": ["-O3", "-std=c++20", "-lineinfo"],
            },
            extra_link_args=linked,
        )

    class OptionalBuild(BuildExtension):
        """Builds what can be built, and leaves out the rest with a word of why.

        First the CUDA kernels, unless they are demanded; then the whole extension.
        """

        def run(self):
            before = self.compiler, self.inplace  # a build changes both, one that fails for good
            if not self.built("CUDA kernels are" if cuda else "C++ extension is") and cuda:
                self.compiler, self.inplace = before
                vars(self.extensions[0]).update(vars(extension(cuda=False)))
                self.built("C++ extension is")

        def built(self, what):
            try:
                super().run()
            except (
                CCompilerError, ExecError, PlatformError, RuntimeError, OSError, IndexError,
                subprocess.CalledProcessError,
            ) as error:  # fmt: skip
                if force == "1":
                    raise
                why = " ".join(str(error).split())
                if isinstance(error, IndexError):  # torch takes the last of the GPUs that it sees
                    why = "no GPU is visible; name those to build for in TORCH_CUDA_ARCH_LIST"
                print(f"sparseconv: the {what} left out: {why}", file=sys.stderr)
                return False
            return True

    extensions = [extension(cuda)]
    commands = {"build_ext": OptionalBuild}

setup(ext_modules=extensions, cmdclass=commands)
