// The region of a file that may use the instructions of one instruction set: only our own code,
// which is called through the table after the CPU was asked. Nothing of the STL may be instantiated
// in it. Includes what it may use.
#pragma once

#include <immintrin.h>

#include <utility>

#include "../kernels.h"
#include "../scratch.h"

#define SPARSECONV_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SPARSECONV_BEGIN_REGION(isa) \
  SPARSECONV_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define SPARSECONV_END_REGION SPARSECONV_PRAGMA(clang attribute pop)
#else
// The intrinsics of gcc 12 leave operands undefined on purpose and are warned about for it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#define SPARSECONV_BEGIN_REGION(isa)  \
  SPARSECONV_PRAGMA(GCC push_options) \
  SPARSECONV_PRAGMA(GCC target(isa))
#define SPARSECONV_END_REGION SPARSECONV_PRAGMA(GCC pop_options)
#endif
