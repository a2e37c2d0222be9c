// One random case on every instruction set of this machine, cut into shares as threads would; what
// a failure prints rebuilds it.
#pragma once

#include <map>
#include <string>

#include "cpu/isa/dispatch.h"
#include "cpu/scratch.h"
#include "host_memory.h"

extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

namespace sparseconv::host {

struct Current {
  char** arguments = nullptr;
  int64_t seed = 0;
  const char* kernel = "";
  const char* isa = "";
};
inline Current current;

inline void print_current() {
  std::fprintf(stderr, "%s of %s failed; again: kernels_host %lld 1 %s %s\n", current.kernel,
               current.isa, static_cast<long long>(current.seed), current.arguments[3],
               current.arguments[4]);
}

class Run {
 public:
  explicit Run(char** arguments) {
    current.arguments = arguments;
    if (__sanitizer_set_death_callback != nullptr) {
      __sanitizer_set_death_callback(print_current);
    }
    for (const std::string& name : runnable_isas()) {
      for (const KernelTable* table : {&kBaseline,
#if defined(__x86_64__)
                                       &kAvx2, &kAvx512
#endif
           }) {
        if (name == table->name) {
          tables_.push_back(table);
        }
      }
    }
  }

  void begin(int64_t seed) {
    current.seed = seed;
    random = Random(seed);
  }

  // Calls `compute` with `table` set to each.
  template <typename Compute>
  void on_every_isa(const char* kernel, Compute compute) {
    current.kernel = kernel;
    for (const KernelTable* each : tables_) {
      table = each;
      current.isa = table->name;
      compute();
      ++computed_[kernel];
    }
  }

  template <typename Problem>
  void operator()(void (*kernel)(const Problem&, int64_t, int64_t, void*), const Problem& p) {
    const int64_t parts = random.pick({1, 1, 2, 3, 5});
    for (int64_t part = 0; part < parts; ++part) {
      const Block scratch(ceil_div(scratch_bytes(p), kRowBytes) * kRowBytes, kRowBytes);
      kernel(p, part, parts, scratch.data);
    }
  }

  void expect(double found, double wanted) {
    if (!(found == wanted)) {
      std::fprintf(stderr, "%g instead of %g\n", found, wanted);
      print_current();
      std::exit(3);
    }
  }
  template <typename Expected>
  void expect(const Signal& found, const Sizes& sizes, Expected expected) {
    for (int64_t n = 0; n < sizes[0]; ++n) {
      for (int64_t c = 0; c < sizes[1]; ++c) {
        for (int64_t l = 0; l < sizes[2]; ++l) {
          expect(found.at(n, c, l), rounded(expected(n, c, l), found.element));
        }
      }
    }
  }

  // "kernel computations" of each, for the test to count.
  void report() const {
    for (const auto& [kernel, n] : computed_) {
      std::printf("%s %lld\n", kernel.c_str(), static_cast<long long>(n));
    }
  }

  bool first() const { return table == tables_.front(); }

  Random random{0};
  const KernelTable* table = nullptr;

 private:
  std::vector<const KernelTable*> tables_;
  std::map<std::string, int64_t> computed_;
};

}  // namespace sparseconv::host
