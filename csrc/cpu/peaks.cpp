#include "peaks.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "isa/dispatch.h"
#include "kernels.h"
#include "launch.h"
#include "layout.h"

namespace sparseconv {
namespace {

PeakLoop find(const std::string& what, bool float64) {
  constexpr const char* kWhat[3] = {"registers", "loads", "triad"};
  for (int i = 0; i < 3; ++i) {
    if (what == kWhat[i]) {
      return active_kernels().peaks[i][float64 ? 1 : 0];
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
  const PeakLoop loop = find(what, float64);
  if (bytes < 1 || bytes % kPeakBlock != 0 || passes < 1 || repeats < 1) {
    throw std::invalid_argument("expected a multiple of " + std::to_string(kPeakBlock) +
                                " bytes and at least 1 pass and 1 repeat, but got " +
                                std::to_string(bytes) + ", " + std::to_string(passes) + " and " +
                                std::to_string(repeats));
  }
  const int64_t threads = usable_threads();
  const int64_t stride = (bytes / kRowBytes + 1) * kRowBytes;  // one more row, for the sink
  std::vector<std::unique_ptr<char, Free>> memory(threads);
  for (auto& part : memory) {
    part.reset(static_cast<char*>(std::aligned_alloc(kRowBytes, stride)));
    if (part == nullptr) {
      throw std::bad_alloc();
    }
  }
  const auto everywhere = [&](int64_t times) {
    parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
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
