// The Python module _C: the instruction sets, and what Python calls without torch's dispatcher in
// between: convolutions and banks of random kernels. Importing it also registers the
// ops (cpu/ops, cuda/conv1d_cuda.cpp).

#include <ATen/ops/from_blob.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#include "autograd/conv.h"
#include "autograd/plain.h"
#include "checks.h"
#include "cpu/isa/dispatch.h"
#include "cpu/launch.h"
#include "cpu/ops/rocket.h"
#include "cpu/plan/plan_cache.h"
#include "cpu/rows.h"
#include "cpu/update.h"

namespace sparseconv {
namespace {

// While it lives, Python's lock is released; the kernels are chosen before.
struct Computing {
  const KernelTable& kernels = choose_kernels();
  const pybind11::gil_scoped_release release{};  // which clang does not make of {}
};

std::vector<double> run_peak(bool float64, int64_t passes, int64_t repeats) {
  if (passes < 1 || repeats < 1) {
    throw std::invalid_argument("expected at least 1 pass and 1 repeat, but got " +
                                std::to_string(passes) + " and " + std::to_string(repeats));
  }
  const auto loop = active_kernels().peak[float64 ? 1 : 0];
  const ForkGuard fork_guard;
  const int64_t threads = at::get_num_threads();
  std::vector<double> seconds;
  for (int64_t i = -1; i < repeats; ++i) {  // the first time wakes the threads
    const auto start = std::chrono::steady_clock::now();
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        loop(0, i < 0 ? 1 : passes);
      }
    });
    if (i >= 0) {
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      seconds.push_back(taken.count());
    }
  }
  return seconds;
}

template <typename Plan>
void def_plan(pybind11::module_& m, const char* name, const char* doc) {
  pybind11::class_<Plan>(m, name, doc)
      .def(pybind11::init([](const std::map<std::string, Tensor>& arrays, int64_t series_channels,
                             int64_t series_length) {
             return std::make_unique<Plan>(KernelBank{arrays, series_channels, series_length});
           }),
           pybind11::arg("arrays"), pybind11::arg("series_channels"),
           pybind11::arg("series_length"))
      .def("features", &Plan::features, pybind11::call_guard<Computing>());
}

}  // namespace
}  // namespace sparseconv

PYBIND11_MODULE(_C, m) {
  using namespace sparseconv;
  m.doc() = "The compiled kernels; those that torch dispatches are in torch.ops.sparseconv.";
  m.attr("cuda") = pybind11::bool_(SPARSECONV_WITH_CUDA);  // whether the CUDA ops are in it
#if defined(_OPENMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;  // all that computes does so on one thread
#endif
  m.attr("peak_pass") = kPeakPass;  // multiply-adds
  m.def("isas", &runnable_isas,
        "Instruction sets that this CPU can run, best first; SPARSECONV_CPU_ISA accepts these.");
  m.def(
      "isa", [] { return choose_kernels().name; },
      "The instruction set in use. ValueError if SPARSECONV_CPU_ISA names one that cannot run.");
  m.def(
      "getenv",
      [](const char* name) -> pybind11::object {
        const char* value = std::getenv(name);
        return value == nullptr ? pybind11::none()
                                : pybind11::reinterpret_steal<pybind11::object>(
                                      PyUnicode_DecodeFSDefault(value));
      },
      "As os.environ.get, ten times as fast.");
  m.def("run_peak", &run_peak, pybind11::call_guard<Computing>(), pybind11::arg("float64"),
        pybind11::arg("passes"), pybind11::arg("repeats"),
        "Seconds taken by each of `repeats` runs of `passes` times `peak_pass` multiply-adds, with "
        "operands in registers, on each of torch's threads.");
  m.def("plan_bytes", &plan_bytes, pybind11::arg("crow_indices"), pybind11::arg("col_indices"),
        "Bytes that the plans of a pattern's two index tensors occupy.");
  m.def("runs_plainly", &runs_plainly, pybind11::arg("may_cast") = false,
        "Whether torch only computes, and perhaps records gradients: nothing traces, casts, "
        "transforms, watches calls, or differentiates in forward mode.");
  m.def("eager_conv", &eager_conv, pybind11::arg("input"), pybind11::arg("values"),
        pybind11::arg("bias"), pybind11::arg("crow_indices"), pybind11::arg("col_indices"),
        pybind11::arg("geometry"), pybind11::arg("backend"), pybind11::arg("relu"),
        "The convolution with its gradients; None if torch does more than compute, if another "
        "backend is asked for, or if the arguments are invalid.");
  for (const auto& define : direct_calls()) {
    define(m);
  }
  m.def(
      "set_gradients", &set_gradients, pybind11::arg("gradients"),
      "Sets the function that differentiates the convolution where torch does more than compute.");
  m.def("keeps_order", [](pybind11::handle geometry) {
    return fits_lanes(check_geometry(geometry_numbers(geometry)));
  });
  m.def(
      "fits_rows",
      [](const at::Tensor& crow, const at::Tensor& col, pybind11::handle geometry) {
        return fits_rows(*plan_of(crow, col, geometry_numbers(geometry)));
      },
      pybind11::arg("crow_indices"), pybind11::arg("col_indices"), pybind11::arg("geometry"),
      "Whether rows can take the convolution.");
  m.def(
      "lanes_shape",
      [](int64_t batch, int64_t length, int64_t itemsize) {
        const auto order = lane_order(batch, length, kRowBytes / itemsize);
        return std::vector<int64_t>{order.groups, order.rows, order.lanes};
      },
      pybind11::arg("batch"), pybind11::arg("length"), pybind11::arg("itemsize"),
      "The sizes of a channel in lanes.");
  m.def(
      "pools_in_lanes",
      [](int64_t batch, int64_t length, int64_t itemsize, int64_t size, int64_t stride) {
        const int64_t lanes = kRowBytes / itemsize;
        return fits_pooling(lane_order(batch, length, lanes),
                            lane_order(batch, pooled_length(length, size, stride), lanes), stride);
      },
      pybind11::arg("batch"), pybind11::arg("length"), pybind11::arg("itemsize"),
      pybind11::arg("size"), pybind11::arg("stride"),
      "Whether max pooling over windows that do not overlap stays in lanes.");
  m.def("has_fma", [] { return choose_kernels().fma; });
  m.def("has_block_kernels", [] { return choose_kernels().blocks != nullptr; });
  m.def("prune_and_grow", &prune_and_grow, pybind11::call_guard<Computing>(),
        pybind11::arg("crow_indices"), pybind11::arg("col_indices"), pybind11::arg("shape"),
        pybind11::arg("boxes"), pybind11::arg("fraction"), pybind11::arg("magnitudes"),
        pybind11::arg("scores") = pybind11::none(), pybind11::arg("seed"),
        "One update of a pattern.");
  def_plan<RocketPlan>(m, "RocketPlan", "A bank of ROCKET's kernels.");
  def_plan<MiniRocketPlan>(m, "MiniRocketPlan", "A bank of MiniROCKET's kernels.");
}
