// The CUDA kernels: what the binding calls, torch-free. Each function only puts work on the stream,
// and returns what cudaGetLastError does; it reads no device memory, allocates nothing and waits
// for nothing, so a CUDA graph can capture it.
//
// NONE OF THIS HAS RUN ON A GPU YET. Registers, spills and the share of multiply-adds are those of
// the compiled code; that the results are right was shown by running the same source on a CPU
// (tests/kernels/cuda/test_cuda.py, in `make cuda-check`). Every time, and every choice that is
// called an estimate, waits for `python -m benchmarks.gpu`.
//
// Floors, computed for DSN's later layer (16 series, 47 -> 141 channels, 39 taps, 34 459 active
// weights of 258 453) at an H200's 67 TFLOP/s: 2.5 us for 150 samples, 8.8 for 537, 45 for 2709.
// All tensors fit its L2 cache, so arithmetic bounds it. Dense in true float32 is 7.5 times that;
// dense in TF32, which PyTorch's convolutions use unless told otherwise, about the same.
//
// Design. A multiprocessor does 128 multiply-adds a clock, but reads 32 floats from shared memory.
//   tiled      one such read per multiply-add: at most a quarter of the peak, for any shape whose
//              window fits 47 KB; float64 always.
//   registers  a lane's window in registers, where all active weights of two rows of the pattern
//              use it. For steps of 1 and windows up to 39 (13, 26): fprop of stride 1, and dgrad
//              also of larger strides. Which weights are active is told by bits, one test per four.
//   direct     reads global memory, for windows that nothing else holds.
// The three are one loop (correlate.cuh, wgrad.cuh) over three kinds of inputs (inputs.cuh), for
// all element types: half types are widened where they are loaded. dgrad is fprop on the transposed
// pattern, once per phase of the stride. Tiling: tiling.h. Which kernel when: dispatch.h.
//
// Sizes. A lane computes 17 or 31 neighbouring outputs: odd, so that neighbouring lanes meet
// different banks; 31, because 2 x 31 sums and 69 inputs just fit 168 registers, with which three
// blocks of four warps share a multiprocessor. 24 KB of inputs per block let four do so.
//
// Compiled by nvcc 13.0, of the instructions that the wide kernel executes on DSN's layer between
// two fillings of its window, 61 % are FFMA for sm_90 and 51 % for sm_80, where nvcc does not see
// that a warp jumps together; with the filling 54 and 46 %. wgrad: 46 and 41 %.
#pragma once

#include <cuda_runtime_api.h>

#include "dispatch.h"

namespace sparseconv::cuda {

// launch.blocks must be in [1, 2**31).
cudaError_t launch_correlate(const Correlation& p, const Launch& launch, cudaStream_t stream);
cudaError_t launch_fold(const Fold& p, Element element, cudaStream_t stream);
cudaError_t launch_wgrad(const WeightGradient& p, const Launch& launch, cudaStream_t stream);

// out[e] = the sum of partial[:, e], converted to `element`.
cudaError_t launch_add_chunks(const void* partial,
                              int64_t chunks,
                              int64_t nnz,
                              void* out,
                              Element element,
                              cudaStream_t stream);

}  // namespace sparseconv::cuda
