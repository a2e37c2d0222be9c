// From a checked problem to the kernels of the chosen instruction set, on torch's threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "kernels.h"
#include "scratch.h"

namespace sparseconv {

// Elements of the accumulation type in a scratch row.
int64_t lanes_of(const at::Tensor& x);

// Memory that a thread keeps from call to call: half a megabyte would otherwise be mapped and
// page-faulted at each call. Only what an unusual layer needs (long dilated kernels) is freed.
void* thread_scratch(int64_t bytes);
void release_large_scratch();

// While it lives, a call in a forked child computes on one thread, in torch's own loops as well as
// in these: the OpenMP that most builds of torch have waits there for the parent's threads, which
// do not exist. Every computation of this library begins with one.
class ForkGuard {
 public:
  ForkGuard();
  ~ForkGuard();
  ForkGuard(const ForkGuard&) = delete;
  ForkGuard& operator=(const ForkGuard&) = delete;

 private:
  int threads_ = 0;  // this thread's number of them, to be restored; 0: nothing was changed
};

// The kernels in use; ValueError if SPARSECONV_CPU_ISA names others than this CPU can run.
const KernelTable& checked_kernels();

// Runs a kernel in `parts`, or in fewer where torch has fewer threads.
template <typename Problem>
void run_parts(const Problem& problem,
               void (*kernel)(const Problem&, int64_t part, int64_t parts, void* scratch),
               int64_t parts) {
  parts = std::clamp<int64_t>(parts, 1, at::get_num_threads());
  int64_t bytes = 0;
  if constexpr (requires { problem.scratch_bytes(); }) {
    bytes = problem.scratch_bytes();
  }
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      kernel(problem, part, parts, thread_scratch(bytes));
    }
    release_large_scratch();
  });
}

// A share below this many row operations (some 10 us) is not worth waking a thread for.
constexpr int64_t kGrain = 64 * 1024;

// Runs one of the table's kernels in the number of parts that `row_operations` are worth.
template <typename Problem, typename Kernels>
void run_kernel(const Problem& problem,
                Kernels KernelTable::* kernels,
                Element element,
                int64_t row_operations) {
  run_parts(problem, (checked_kernels().*kernels)[static_cast<int>(element)],
            row_operations / kGrain);
}

// Does nothing if there are no outputs.
void run_correlation(const Correlation& p, Element element);

}  // namespace sparseconv
