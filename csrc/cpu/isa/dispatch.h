// Which instruction sets this machine can run, and which one is used.
#pragma once

#include <string>
#include <vector>

#include "../kernels.h"

namespace sparseconv {

// Names that SPARSECONV_CPU_ISA accepts on this machine, the best first.
std::vector<std::string> runnable_isas();

// The table that SPARSECONV_CPU_ISA names, or the best one. Throws std::invalid_argument for a
// name that is unknown or that this CPU cannot run.
const KernelTable& active_kernels();

}  // namespace sparseconv
