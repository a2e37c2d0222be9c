// The Python module _C: which instruction sets there are and which is used. Importing it also
// registers the CPU ops (cpu/*_cpu.cpp).

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>

#include "cpu/dispatch.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Capabilities of the compiled kernels; the ops are in torch.ops.sparseconv.";
  m.def("isas", &sparseconv::runnable_isas,
        "Instruction sets this CPU can run, the best first: what SPARSECONV_CPU_ISA accepts.");
  m.def(
      "isa", [] { return sparseconv::kernels().name; },
      "The instruction set in use. Raises ValueError if SPARSECONV_CPU_ISA names another.");
  m.def(
      "getenv", [](const char* name) { return std::getenv(name); },
      "An environment variable or None, ten times as fast as os.environ.get.");
}
