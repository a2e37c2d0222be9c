#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace sparseconv {

namespace {

#if defined(__x86_64__)
// Whether this CPU has AMX for bfloat16, and the system lets the process use it.
bool amx() {
  unsigned a, b, c, d;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kAmxBf16) == 0 || (d & kAmxTile) == 0) {
    return false;
  }
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<const KernelTable*> runnable() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a, b, c = 0, d;
  __get_cpuid(1, &a, &b, &c, &d);
  constexpr unsigned kF16c = 1u << 29;  // clang has no name for it in __builtin_cpu_supports
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (c & kF16c) != 0;
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
      if (amx()) {
        tables.push_back(&kAmx);
      }
      tables.push_back(&kAvx512Bf16);
    }
    tables.push_back(&kAvx512);
  }
  if (avx2) {
    tables.push_back(&kAvx2);
  }
#elif defined(__aarch64__)
  tables.push_back(&kNeon);
#endif
  tables.push_back(&kBaseline);
  return tables;
}

const std::vector<const KernelTable*>& tables() {
  static const std::vector<const KernelTable*> found = runnable();
  return found;
}

const KernelTable& named() {
  const char* wanted = std::getenv("SPARSECONV_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    return *tables().front();
  }
  for (const KernelTable* table : {&kAmxEmulated, &kAvx512Bf16Emulated}) {
    if (std::string(wanted) == table->name) {  // for tests: slow everywhere
      return *table;
    }
  }
  std::string names;
  for (const KernelTable* table : tables()) {
    if (std::string(wanted) == table->name) {
      return *table;
    }
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument("SPARSECONV_CPU_ISA must be one of those this CPU can run (" + names +
                              "), but got '" + wanted + "'; unset it to take the best");
}

std::atomic<const KernelTable*> chosen{nullptr};

}  // namespace

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : tables()) {
    names.emplace_back(table->name);
  }
  return names;
}

const KernelTable& choose_kernels() {
  const KernelTable& table = named();
  chosen = &table;
  return table;
}

const KernelTable& active_kernels() {
  const KernelTable* table = chosen;
  return table != nullptr ? *table : choose_kernels();  // an op, before any other call
}

}  // namespace sparseconv
