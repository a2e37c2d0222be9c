// Which instruction sets this machine can run, and which one is used.
#pragma once

#include <string>
#include <vector>

#include "../kernels.h"

namespace sparseconv {

// Names that SPARSECONV_CPU_ISA accepts on this machine, the best first.
std::vector<std::string> runnable_isas();

// Takes the table that SPARSECONV_CPU_ISA names now, or the best one, for all that computes from
// now on. With Python's lock: what os.environ writes in another thread moves what is read here.
// Throws std::invalid_argument for a name that is unknown or that this CPU cannot run.
const KernelTable& choose_kernels();

// The table that was chosen last.
const KernelTable& active_kernels();

}  // namespace sparseconv
