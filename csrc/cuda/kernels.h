// The CUDA kernels: what the binding calls, torch-free. Each function only puts work on the stream,
// and returns what cudaGetLastError does; it reads no device memory, allocates nothing and waits
// for nothing, so a CUDA graph can capture it.
//
// That the results are right is shown without a GPU too, by running the same source on a
// CPU (tests/kernels/cuda). What an H100 took: benchmarks/results/gpu.json.
//
// Design. A multiprocessor does 128 multiply-adds a clock, but reads 32 floats from shared memory:
// an input has to be used more than once, by the active weights of one kernel (o, c). A warp
// computes one row of the pattern for 32 * 36 positions. Of each kernel a lane has its window in
// registers as far as the next taps need it, and bits tell which taps have code to run; one test
// skips four. Meanwhile the next channels come into the other half of shared memory.
#pragma once

#include <cuda_runtime_api.h>

#include "problem.h"

namespace sparseconv::cuda {

cudaError_t launch_pack(const Packing& p, cudaStream_t stream);
// cut.blocks must be in [1, 2**31).
cudaError_t launch_correlate(const Correlation& p, const Cut& cut, cudaStream_t stream);
cudaError_t launch_wgrad(const WeightGradient& p, const Cut& cut, cudaStream_t stream);

}  // namespace sparseconv::cuda
