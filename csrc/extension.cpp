// The Python module _C: which instruction sets there are, which is used and what it reaches at
// best. Importing it also registers the ops (cpu/ops, cuda/conv1d_cuda.cpp).

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>

#include "cpu/isa/dispatch.h"
#include "cpu/peaks.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Capabilities of the compiled kernels; the ops are in torch.ops.sparseconv.";
  m.attr("cuda") = pybind11::bool_(SPARSECONV_WITH_CUDA);  // whether the CUDA ops are in it
  m.def("isas", &sparseconv::runnable_isas,
        "Instruction sets this CPU can run, the best first: what SPARSECONV_CPU_ISA accepts.");
  m.def(
      "isa", [] { return sparseconv::active_kernels().name; },
      "The instruction set in use. Raises ValueError if SPARSECONV_CPU_ISA names another.");
  m.def(
      "getenv", [](const char* name) { return std::getenv(name); },
      "An environment variable or None, ten times as fast as os.environ.get.");
  m.def("run_peak", &sparseconv::run_peak, pybind11::call_guard<pybind11::gil_scoped_release>(),
        pybind11::arg("what"), pybind11::arg("float64"), pybind11::arg("bytes"),
        pybind11::arg("passes"), pybind11::arg("repeats"),
        "Seconds of each run of a loop that does nothing but one thing; see cpu/peaks.h.");
}
