// csrc/cuda/conv1d_cuda.cpp on a machine without CUDA: the ops are registered for CPU tensors, and
// launches run on the host (emulated_team.h). test_cuda.py compiles this with empty files in the
// place of the headers of CUDA and c10/cuda.

#include <ATen/ATen.h>
#include <torch/library.h>

#define cut_of chosen_cut
#include "emulated_team.h"
#undef cut_of

using cudaError_t = int;
using cudaStream_t = void*;
#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == 0)

namespace c10::cuda {
inline int guards = 0;
struct CUDAGuard {
  explicit CUDAGuard(at::Device) { ++guards; }
  ~CUDAGuard() { --guards; }
};
inline cudaStream_t getCurrentCUDAStream() {
  TORCH_CHECK(guards == 1, "the stream of the tensors' device, not of the current one");
  return &guards;
}
}  // namespace c10::cuda

// One of the kernels: EMULATED_POSITIONS in the environment names one.
namespace sparseconv::cuda {
static Cut cut_of(const Pattern& pattern, int64_t positions, bool correlates) {
  const char* forced = std::getenv("EMULATED_POSITIONS");
  if (forced == nullptr || *forced == '\0') {
    return chosen_cut(pattern, positions, correlates);
  }
  const int of_lane = std::atoi(forced);
  if (correlates) {
    return chosen_cut(pattern, positions, of_lane);
  }
  Cut cut = chosen_cut(pattern, positions, of_lane == kTiny ? kSmall : of_lane);
  cut.blocks = cut.tiles == 0 ? 0 : cut.blocks / cut.tiles * partials_of(cut.tiles);
  return cut;
}
}  // namespace sparseconv::cuda

#define kCUDA kCPU
#define CUDA CPU
#include "checks.cpp"
#include "cuda/conv1d_cuda.cpp"

namespace sparseconv::cuda {

static cudaError_t on(cudaStream_t stream) {
  return stream == &c10::cuda::guards ? 0 : 1;
}

cudaError_t launch_pack(const Packing& p, cudaStream_t stream) {
  for (int32_t at = 0; at < p.stride + 100; ++at) {  // the last block's are too many
    for (int32_t first = 0; first < 3; ++first) {
      pack(p, at, first, 3);
    }
  }
  return on(stream);
}
cudaError_t launch_correlate(const Correlation& p, const Cut& cut, cudaStream_t stream) {
  run(cut, [&](const HostBlock& block, float* shared) {
    cut.positions == kLarge   ? correlate_block<kLarge>(p, cut.tiles, block, shared)
    : cut.positions == kSmall ? correlate_block<kSmall>(p, cut.tiles, block, shared)
                              : correlate_block<kTiny>(p, cut.tiles, block, shared);
  });
  return on(stream);
}
cudaError_t launch_wgrad(const WeightGradient& p, const Cut& cut, cudaStream_t stream) {
  run(cut, [&](const HostBlock& block, float* shared) {
    cut.positions == kLarge ? wgrad_block<kLarge>(p, cut.tiles, block, shared)
                            : wgrad_block<kSmall>(p, cut.tiles, block, shared);
  });
  return on(stream);
}

}  // namespace sparseconv::cuda
