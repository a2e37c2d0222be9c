// The half types as the kernels see them: 16 bits each. Arithmetic is always in float.
#pragma once

#include <cstdint>

namespace sparseconv {

struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

}  // namespace sparseconv
