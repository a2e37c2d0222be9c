// The GPU's side of the kernels: what inputs.cuh calls a Block.
#pragma once

#include "inputs.cuh"

namespace sparseconv::cuda {

extern __shared__ double shared_memory[];

struct DeviceBlock {
  __device__ int64_t index() const { return blockIdx.x; }
  __device__ int warp() const { return static_cast<int>(threadIdx.x) / kLanes; }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void sync_warp() const { __syncwarp(); }

  // The OR of what all lanes of a warp pass.
  __device__ uint32_t any_bits(uint32_t x) const {
#if __CUDA_ARCH__ >= 800
    return __reduce_or_sync(~0u, x);
#else
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      x |= __shfl_xor_sync(~0u, x, distance);
    }
    return x;
#endif
  }

  // A warp's weights of one batch, and a place to read in vain.
  __device__ float* batch() const {
    __shared__ float weights[kWarps][kLanes + 1];
    return weights[warp()];
  }
};

// For work of one thread per element.
constexpr int kThreads = 256;

inline unsigned blocks_of(int64_t threads) {
  return static_cast<unsigned>(ceil_div(threads, kThreads));
}

SPARSECONV_DEVICE int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

}  // namespace sparseconv::cuda
