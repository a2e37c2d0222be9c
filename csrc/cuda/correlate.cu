#include "correlate.cuh"
#include "device.cuh"
#include "kernels.h"

namespace sparseconv::cuda {
namespace {

// Blocks per multiprocessor that registers must suffice for: three of the wide kernels (168
// registers), four of the others (128).
template <typename Instance>
constexpr int kBlocks = Instance::Inputs::kOutputs == kWide ? 3 : 4;

template <typename Instance>
__global__ void __launch_bounds__(kWarps* kLanes, kBlocks<Instance>)
    correlate_kernel(const __grid_constant__ Correlation p, const __grid_constant__ Tiling tiling) {
  correlate_block<typename Instance::Inputs, Instance::kRows>(
      p, tiling, DeviceBlock(), reinterpret_cast<typename Instance::T*>(shared_memory));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) fold_kernel(const __grid_constant__ Fold p) {
  if (thread_index() < p.series * p.length) {
    add_fold<T>(p, thread_index());
  }
}

}  // namespace

cudaError_t launch_correlate(const Correlation& p, const Launch& launch, cudaStream_t stream) {
  with_correlate(launch.variant, p.in.element, [&](auto instance) {
    correlate_kernel<decltype(instance)>
        <<<static_cast<unsigned>(launch.blocks), kWarps * kLanes, launch.shared_bytes, stream>>>(
            p, launch.tiling);
  });
  return cudaGetLastError();
}

cudaError_t launch_fold(const Fold& p, Element element, cudaStream_t stream) {
  const unsigned blocks = blocks_of(p.series * p.length);
  if (element == Element::f64) {
    fold_kernel<double><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    fold_kernel<float><<<blocks, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace sparseconv::cuda
