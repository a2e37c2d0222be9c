#include "peaks.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dispatch.h"
#include "half.h"
#include "layout.h"

// One namespace and one target region for each instruction set, as in kernels_*.cpp.
#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx2,fma,f16c")
#endif
namespace sparseconv {
namespace peaks_avx512 {
#include "vec_avx512.h"
constexpr int kSums = 24;
#include "peaks.inl"
}  // namespace peaks_avx512
}  // namespace sparseconv
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace sparseconv {
namespace peaks_avx2 {
#include "vec_avx2.h"
constexpr int kSums = 12;
#include "peaks.inl"
}  // namespace peaks_avx2
}  // namespace sparseconv
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

namespace sparseconv {
namespace peaks_baseline {
#include "vec_baseline.h"
constexpr int kSums = 12;
#include "peaks.inl"
}  // namespace peaks_baseline

namespace {

using Loop = void (*)(void* memory, int64_t bytes, int64_t passes, void* sink);

struct Loops {
  const char* isa;
  Loop loops[3][2];  // what; float32, float64
};

constexpr const char* kWhat[3] = {"registers", "loads", "triad"};

#define SPARSECONV_LOOPS(space)                                               \
  {                                                                           \
      {space::peak_registers<space::F32>, space::peak_registers<space::F64>}, \
      {space::peak_loads<space::F32>, space::peak_loads<space::F64>},         \
      {space::peak_triad<space::F32>, space::peak_triad<space::F64>},         \
  }

constexpr Loops kLoops[] = {
#if defined(__x86_64__)
    {"avx512", SPARSECONV_LOOPS(peaks_avx512)},
    {"avx2", SPARSECONV_LOOPS(peaks_avx2)},
#endif
    {"baseline", SPARSECONV_LOOPS(peaks_baseline)},
};

#undef SPARSECONV_LOOPS

Loop find(const std::string& what, bool float64) {
  const std::string isa = kernels().name;
  for (const Loops& entry : kLoops) {
    for (int i = 0; i < 3; ++i) {
      if (isa == entry.isa && what == kWhat[i]) {
        return entry.loops[i][float64 ? 1 : 0];
      }
    }
  }
  throw std::invalid_argument("expected \"registers\", \"loads\" or \"triad\", but got '" + what +
                              "'");
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

}  // namespace

std::vector<double> run_peak(const std::string& what,
                             bool float64,
                             int64_t bytes,
                             int64_t passes,
                             int64_t repeats) {
  const Loop loop = find(what, float64);
  if (bytes < 1 || bytes % kPeakBlock != 0 || passes < 1 || repeats < 1) {
    throw std::invalid_argument("expected a multiple of " + std::to_string(kPeakBlock) +
                                " bytes and at least 1 pass and 1 repeat, but got " +
                                std::to_string(bytes) + ", " + std::to_string(passes) + " and " +
                                std::to_string(repeats));
  }
  const int64_t threads = at::get_num_threads();
  const int64_t stride = (bytes / kRowBytes + 1) * kRowBytes;  // one more row, for the sink
  std::vector<std::unique_ptr<char, Free>> memory(threads);
  for (auto& part : memory) {
    part.reset(static_cast<char*>(std::aligned_alloc(kRowBytes, stride)));
    if (part == nullptr) {
      throw std::bad_alloc();
    }
  }
  const auto everywhere = [&](int64_t times) {
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        char* data = memory[part].get();
        if (times == 0) {  // each thread touches its own memory first
          std::memset(data, 0, stride);
        } else {
          loop(data, bytes, times, data + stride - kRowBytes);
        }
      }
    });
  };
  everywhere(0);
  everywhere(1);
  std::vector<double> seconds;
  for (int64_t i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    everywhere(passes);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return seconds;
}

}  // namespace sparseconv
