#if defined(__unix__)
#include <unistd.h>
#endif

#include "layout.h"

namespace sparseconv {

int64_t l1_input_budget() {
  int64_t l1 = 0;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
  return (l1 > 0 ? l1 : 32 * 1024) / 4 * 3;
}

}  // namespace sparseconv
