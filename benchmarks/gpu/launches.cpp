// The binding of csrc/cuda on a machine without a GPU: its ops take CPU tensors, and every launch
// is handed to a callback instead of a driver. benchmarks/gpu/predict.py links this with the
// objects of nvcc, without the CUDA runtime.

#include <ATen/ATen.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include <map>
#include <string>

namespace c10::cuda {
struct CUDAGuard {
  explicit CUDAGuard(at::Device) {}
};
inline int current_device() {
  return 0;
}
inline cudaStream_t getCurrentCUDAStream() {
  return nullptr;
}
}  // namespace c10::cuda
#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == 0)
#define kCUDA kCPU
#define CUDA CPU
#include "checks.cpp"
#include "cuda/conv1d_cuda.cpp"

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared;
};
using Callback = void (*)(const char*, const unsigned*, const unsigned*, size_t, void**);

Configuration configuration;
Callback callback;
std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> known;
  return known;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void on_launch(Callback f) {
  callback = f;
}

EXPORTED cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 132;  // multiprocessors of an H100 or H200
  return cudaSuccess;
}
EXPORTED cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
EXPORTED cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

// What nvcc's code for the host calls.
EXPORTED void** __cudaRegisterFatBinary(void*) {
  return nullptr;
}
EXPORTED void __cudaRegisterFatBinaryEnd(void**) {}
EXPORTED void __cudaUnregisterFatBinary(void**) {}
EXPORTED void __cudaRegisterFunction(void**,
                                     const char* f,
                                     char*,
                                     const char* name,
                                     int,
                                     uint3*,
                                     uint3*,
                                     dim3*,
                                     dim3*,
                                     int*) {
  names()[f] = name;
}
EXPORTED unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void*) {
  configuration = {grid, block, shared};
  return 0;
}
EXPORTED cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void*) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  return cudaSuccess;
}
EXPORTED cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* f) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(f));
  return cudaSuccess;
}
EXPORTED cudaError_t __cudaLaunchKernel(cudaKernel_t kernel,
                                        dim3 grid,
                                        dim3 block,
                                        void** arguments,
                                        size_t shared,
                                        cudaStream_t) {
  callback(names().at(kernel).c_str(), &grid.x, &block.x, shared, arguments);
  return cudaSuccess;
}
