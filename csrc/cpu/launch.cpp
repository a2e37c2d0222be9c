#include "launch.h"

#include <pthread.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>

#include "../checks.h"
#include "isa/dispatch.h"

namespace sparseconv {

const KernelTable& checked_kernels() {
  try {
    return active_kernels();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

namespace {

constexpr int64_t kKeptBytes = 8 * 1024 * 1024;

struct Scratch {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory;
  int64_t size = 0;

  void resize(int64_t bytes) {
    memory.reset();
    size = 0;
    if (bytes > 0) {
      memory.reset(std::aligned_alloc(kRowBytes, bytes));
      TORCH_CHECK(memory != nullptr, "could not allocate ", bytes, " bytes of scratch memory");
      size = bytes;
    }
  }
};

Scratch& scratch_of_thread() {
  thread_local Scratch scratch;
  return scratch;
}

std::atomic<bool> forked{false};

std::mutex counting;  // a thread of a child asks torch for the first time, which sets up a pool

// Registered when the library is loaded, before any fork that could matter.
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  forked = true;
  new (&counting) std::mutex;  // of a child of a child: no thread is left to unlock it
});

}  // namespace

int64_t lanes_of(const Tensor& x) {
  return kRowBytes / static_cast<int64_t>(at::elementSize(acc_type(x)));
}

namespace {

// In OpenMP of the calling thread alone; at::set_num_threads is of the whole process.
void set_threads(int threads) {
#if defined(_OPENMP)
  omp_set_num_threads(threads);
#else
  at::set_num_threads(threads);
#endif
}

}  // namespace

ForkGuard::ForkGuard() {
  if (forked.load(std::memory_order_relaxed)) {
    const std::lock_guard<std::mutex> lock(counting);
    threads_ = at::get_num_threads();
    set_threads(1);
  }
}

ForkGuard::~ForkGuard() {
  if (threads_ > 0) {
    set_threads(threads_);
  }
}

void* thread_scratch(int64_t bytes) {
  Scratch& scratch = scratch_of_thread();
  if (scratch.size < bytes) {
    scratch.resize(ceil_div(bytes, kRowBytes) * kRowBytes);
  }
  return scratch.memory.get();
}

void release_large_scratch() {
  if (scratch_of_thread().size > kKeptBytes) {
    scratch_of_thread().resize(0);
  }
}

void run_correlation(const Correlation& p, Element element) {
  const LaneOrder& y = p.order;
  if (y.groups * y.rows == 0) {
    return;
  }
  const Entries& e = p.entries;
  const int64_t rows = y.groups * p.rows() * y.wide;
  const int64_t tiles = y.groups * ceil_div(p.rows(), kTileRows / y.wide);
  const int64_t spans = (p.tile.channel_rows - kTileRows * p.tile.n_segments) * y.wide;
  const int64_t packed = (rows + tiles * spans) * e.groups * e.channels_per_group;
  run_kernel(p, &KernelTable::correlate, element,
             rows * (e.nnz + kStoreCost * e.n_rows) + packed * kPackCost);
}

}  // namespace sparseconv
