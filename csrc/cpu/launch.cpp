#include "launch.h"

#include <ATen/ATen.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>

#include "dispatch.h"
#include "layout.h"

namespace sparseconv {

const KernelTable& table() {
  try {
    return kernels();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

void* thread_scratch(int64_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t size = 0;
  if (size < bytes) {
    memory.reset();
    size = 0;
    const int64_t rounded = ceil_div(bytes, kRowBytes) * kRowBytes;
    memory.reset(std::aligned_alloc(kRowBytes, rounded));
    TORCH_CHECK(memory != nullptr, "could not allocate ", rounded, " bytes of scratch memory");
    size = rounded;
  }
  return memory.get();
}

void run_correlation(Correlation& p, Element element, int64_t lanes, int64_t span) {
  if (p.batch == 0 || p.count <= 0) {
    return;
  }
  p.piece = correlate_piece(p.batch, p.count, lanes, span);
  const Entries& e = p.entries;
  const int64_t nnz = e.pointers[e.n_rows * e.row_channels] - e.pointers[0];
  const int64_t outputs = ceil_div(p.batch * p.count, lanes);
  run(p, outputs * (nnz + 4 * e.n_rows), table().correlate[static_cast<int>(element)]);
}

}  // namespace sparseconv
