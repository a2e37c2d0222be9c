#include "device.cuh"
#include "kernels.h"
#include "wgrad.cuh"

namespace sparseconv::cuda {
namespace {

// Blocks per multiprocessor that registers must suffice for: 62 gradients, up to 69 inputs and what
// the sums need fit 255 registers, not 168.
template <typename Instance>
constexpr int kBlocks = Instance::Inputs::kOutputs == kWide ? 2 : 4;

template <typename Instance>
__global__ void __launch_bounds__(kWarps* kLanes, kBlocks<Instance>)
    wgrad_kernel(const __grid_constant__ WeightGradient p, const __grid_constant__ Tiling tiling) {
  wgrad_block<typename Instance::Inputs, Instance::kRows>(
      p, tiling, DeviceBlock(), reinterpret_cast<typename Instance::T*>(shared_memory));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_chunks_kernel(const T* partial, int64_t chunks, int64_t nnz, void* out, Element element) {
  if (thread_index() < nnz) {
    add_chunks(partial, chunks, nnz, out, element, thread_index());
  }
}

}  // namespace

cudaError_t launch_wgrad(const WeightGradient& p, const Launch& launch, cudaStream_t stream) {
  with_wgrad(launch.variant, p.in.element, [&](auto instance) {
    wgrad_kernel<decltype(instance)>
        <<<static_cast<unsigned>(launch.blocks), kWarps * kLanes, launch.shared_bytes, stream>>>(
            p, launch.tiling);
  });
  return cudaGetLastError();
}

cudaError_t launch_add_chunks(const void* partial,
                              int64_t chunks,
                              int64_t nnz,
                              void* out,
                              Element element,
                              cudaStream_t stream) {
  const unsigned blocks = blocks_of(nnz);
  if (element == Element::f64) {
    add_chunks_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const double*>(partial), chunks,
                                                       nnz, out, element);
  } else {
    add_chunks_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const float*>(partial), chunks,
                                                       nnz, out, element);
  }
  return cudaGetLastError();
}

}  // namespace sparseconv::cuda
