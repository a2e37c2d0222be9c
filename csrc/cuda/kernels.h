// What the binding calls: torch-free. Each function only puts work on the stream, and returns what
// cudaGetLastError does; it reads no device memory, allocates nothing and waits for nothing, so it
// can be captured into a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include "variants.h"

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
