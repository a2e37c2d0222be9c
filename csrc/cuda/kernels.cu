// The GPU's side of kernels.cuh, and the launches.
#include "kernels.cuh"
#include "kernels.h"

namespace sparseconv::cuda {
namespace {

extern __shared__ float4 shared_memory[];

struct DeviceBlock {
  __device__ int32_t index() const { return static_cast<int32_t>(blockIdx.x); }
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int warp() const { return thread() / kLanes; }
  __device__ int lane() const { return thread() % kLanes; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void sync_warp() const { __syncwarp(); }

  // What all lanes of a warp have alike, in a register that the compiler knows to be so.
  __device__ uint32_t uniform(uint32_t x) const { return __reduce_or_sync(~0u, x); }
  __device__ int count(uint32_t bits) const { return __popc(bits); }
  // 16 bytes at once.
  __device__ void fetch(float* to, const float* from) const {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  }

  // From global to shared memory, without waiting.
  template <int kBytes>
  __device__ void copy(void* to, const void* from) const {
    const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    if constexpr (kBytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(from) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(target), "l"(from), "n"(kBytes)
                   : "memory");
    }
  }
  __device__ void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  __device__ void wait() const { asm volatile("cp.async.wait_all;" ::: "memory"); }
};

constexpr int kThreads = 256, kSteps = 16;  // of the kernel that packs

__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ Packing p) {
  pack(p, static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x), blockIdx.y, kSteps);
}

template <int kR>
__global__ void __launch_bounds__(warps_of(kR) * kLanes, 2)
    correlate_kernel(const __grid_constant__ Correlation p, int32_t tiles) {
  correlate_block<kR>(p, tiles, DeviceBlock(), reinterpret_cast<float*>(shared_memory));
}

template <int kR>
__global__ void __launch_bounds__(warps_of(kR) * kLanes, 2)
    wgrad_kernel(const __grid_constant__ WeightGradient p, int32_t tiles) {
  wgrad_block<kR>(p, tiles, DeviceBlock(), reinterpret_cast<float*>(shared_memory));
}

template <typename P>
cudaError_t launch(void (*kernel)(P, int32_t), const P& p, const Cut& cut, cudaStream_t stream) {
  const int bytes = shared_bytes(cut.positions), threads = warps_of(cut.positions) * kLanes;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) {
    kernel<<<static_cast<unsigned>(cut.blocks), threads, bytes, stream>>>(p, cut.tiles);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_pack(const Packing& p, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(ceil_div(p.stride, kThreads)), kSteps);
  pack_kernel<<<blocks, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t launch_correlate(const Correlation& p, const Cut& cut, cudaStream_t stream) {
  return launch(cut.positions == kLarge   ? correlate_kernel<kLarge>
                : cut.positions == kSmall ? correlate_kernel<kSmall>
                                          : correlate_kernel<kTiny>,
                p, cut, stream);
}

cudaError_t launch_wgrad(const WeightGradient& p, const Cut& cut, cudaStream_t stream) {
  return launch(cut.positions == kLarge ? wgrad_kernel<kLarge> : wgrad_kernel<kSmall>, p, cut,
                stream);
}

}  // namespace sparseconv::cuda
