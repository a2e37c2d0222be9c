// The CUDA kernels: what the binding calls, torch-free. Each function only puts work on the stream,
// and returns what cudaGetLastError does; it reads no device memory, allocates nothing and waits
// for nothing, so a CUDA graph can capture it.
#pragma once

#include <cuda_runtime_api.h>

#include "problem.h"

namespace sparseconv::cuda {

cudaError_t launch_pack(const Packing& p, cudaStream_t stream);
// cut.blocks must be in [1, 2**31).
cudaError_t launch_correlate(const Correlation& p, const Cut& cut, cudaStream_t stream);
cudaError_t launch_wgrad(const WeightGradient& p, const Cut& cut, cudaStream_t stream);

}  // namespace sparseconv::cuda
