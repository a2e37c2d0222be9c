// csrc/cuda/conv1d_cuda.cpp on a machine without CUDA: the ops are registered for CPU tensors, and
// launches run on the host (emulated_team.h). test_cuda.py compiles this with empty files in the
// place of the headers of CUDA and c10/cuda.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "emulated_team.h"

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 132;
  return 0;
}
#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == 0)

namespace c10::cuda {
inline int guards = 0;
struct CUDAGuard {
  explicit CUDAGuard(at::Device) { ++guards; }
  ~CUDAGuard() { --guards; }
};
inline int current_device() {
  return 0;
}
inline cudaStream_t getCurrentCUDAStream() {
  TORCH_CHECK(guards == 1, "the stream of the tensors' device, not of the current one");
  return &guards;
}
}  // namespace c10::cuda

#define kCUDA kCPU
#define CUDA CPU
#include "checks.cpp"
#include "cuda/conv1d_cuda.cpp"

namespace sparseconv::cuda {

static cudaError_t on(cudaStream_t stream) {
  return stream == &c10::cuda::guards ? 0 : 1;
}

cudaError_t launch_correlate(const Correlation& p, const Launch& launch, cudaStream_t stream) {
  correlate_on_host(p, launch);
  return on(stream);
}
cudaError_t launch_fold(const Fold& p, Element element, cudaStream_t stream) {
  fold_on_host(p, element);
  return on(stream);
}
cudaError_t launch_wgrad(const WeightGradient& p, const Launch& launch, cudaStream_t stream) {
  wgrad_on_host(p, launch);
  return on(stream);
}
cudaError_t launch_add_chunks(const void* partial,
                              int64_t chunks,
                              int64_t nnz,
                              void* out,
                              Element element,
                              cudaStream_t stream) {
  add_chunks_on_host(partial, chunks, nnz, out, element);
  return on(stream);
}

}  // namespace sparseconv::cuda
