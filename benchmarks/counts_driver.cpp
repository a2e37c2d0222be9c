// Runs the AVX2 kernels under callgrind without torch: reads the calls of benchmarks/counts.py from
// one file, and writes their results to another, so that they can be compared with those of the
// ops. What the ops take from tensors (csrc/cpu/*_cpu.cpp) comes from a header here; plans, layouts
// and the length of a piece come from the kernels' own files.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/layout.h"
#include "cpu/plan.h"

using namespace sparseconv;

// In place of the machine's own (cache.cpp), or the counts would differ with its L1 cache.
int64_t sparseconv::input_bytes() {
  return 36 * 1024;
}

// The kernels' loops become calls of it, and that of the C library differs with its version.
extern "C" void* memset(void* to, int value, size_t n) {
  void* at = to;
  uint64_t word = 0x0101010101010101u * static_cast<unsigned char>(value);
  size_t words = n / 8, rest = n % 8;
  asm volatile("rep stosq" : "+D"(at), "+c"(words) : "a"(word) : "memory");
  asm volatile("rep stosb" : "+D"(at), "+c"(rest) : "a"(word) : "memory");
  return to;
}

// Callgrind counts inside the first two only, and writes the count down at the third.
template <typename Problem>
using Kernel = void (*)(const Problem&, int64_t, int64_t, void*);
extern "C" __attribute__((noinline)) void counted_correlate(Kernel<Correlation> kernel,
                                                            const Correlation& p,
                                                            void* scratch) {
  kernel(p, 0, 1, scratch);
  asm volatile("");  // keeps the call from becoming a jump, which callgrind would not see return
}
extern "C" __attribute__((noinline)) void counted_wgrad(Kernel<WeightGradient> kernel,
                                                        const WeightGradient& p,
                                                        void* scratch) {
  kernel(p, 0, 1, scratch);
  asm volatile("");  // keeps the call from becoming a jump, which callgrind would not see return
}
extern "C" __attribute__((noinline)) void counted_all() {
  asm volatile("");
}

namespace {

constexpr int64_t kLanes = kRowBytes / sizeof(float);

enum Computation : int64_t { kFprop, kDgrad, kWgrad };

// Stride, dilation and groups are 1; padding is by zeros.
struct Call {
  int64_t computation, batch, in_channels, in_length, out_channels, out_length, kernel_size;
  int64_t left, nnz, n_pointers;
};

std::FILE* open(const char* path, const char* mode) {
  std::FILE* file = std::fopen(path, mode);
  if (file == nullptr) {
    std::perror(path);
    std::exit(2);
  }
  return file;
}

template <typename T>
std::vector<T> read(std::FILE* file, int64_t n) {
  std::vector<T> data(n);
  if (std::fread(data.data(), sizeof(T), n, file) != static_cast<size_t>(n)) {
    std::fputs("the file of calls ends too early\n", stderr);
    std::exit(2);
  }
  return data;
}

struct Pattern {
  std::vector<int32_t> pointers, taps;
};

Pattern read_pattern(const Call& c, std::FILE* file) {
  auto pointers = read<int32_t>(file, c.n_pointers);
  return {std::move(pointers), read<int32_t>(file, c.nnz)};
}

PlanShape shape_of(const Call& c) {
  return {c.out_channels, c.in_channels, c.kernel_size, 1, 1, 1};
}

TensorView view(std::vector<float>& data, int64_t channels, int64_t length) {
  return {data.data(), {channels * length, length, 1}};
}

template <typename Problem>
void* scratch_for(const Problem& p) {
  return std::aligned_alloc(kRowBytes, ceil_div(scratch_bytes(p), kRowBytes) * kRowBytes);
}

std::vector<float> correlate(const Call& c, std::FILE* calls) {
  const bool forward = c.computation == kFprop;
  const auto pattern = read_pattern(c, calls);
  const auto values = read<float>(calls, c.nnz);
  const int64_t from_channels = forward ? c.in_channels : c.out_channels;
  const int64_t from_length = forward ? c.in_length : c.out_length;
  const int64_t to_channels = forward ? c.out_channels : c.in_channels;
  const int64_t to_length = forward ? c.out_length : c.in_length;
  auto input = read<float>(calls, c.batch * from_channels * from_length);
  std::vector<float> output(c.batch * to_channels * to_length);

  std::vector<int64_t> taps;
  const Layout layout =
      forward ? fprop_layout(c.kernel_size, 1, 1) : dgrad_layout(c.kernel_size, 1, 1, 0, &taps);
  Correlation p{};
  std::vector<int32_t> pointers = pattern.pointers, rows(c.nnz), index(c.nnz);
  std::vector<float> weights = values;
  if (forward) {
    plan_fprop(shape_of(c), pointers.data(), pattern.taps.data(), rows.data());
  } else {
    plan_dgrad(shape_of(c), pattern.pointers.data(), pattern.taps.data(), pointers.data(),
               rows.data(), index.data());
    for (int64_t e = 0; e < c.nnz; ++e) {
      weights[e] = values[index[e]];
    }
  }
  const auto starts =
      block_starts(pointers.data(), to_channels, from_channels, layout.block_channels);
  p.entries = {starts.data(), rows.data(), layout.blocks(from_channels),
               from_channels, to_channels, 1};
  p.tile = layout.shape();
  p.values = weights.data();
  p.in = view(input, from_channels, from_length);
  p.in_length = from_length;
  p.mode = PaddingMode::zeros;
  p.origin = forward ? -c.left : c.left;
  p.out = view(output, to_channels, to_length);
  p.out_length = to_length;
  p.out_step = 1;
  p.batch = c.batch;
  p.count = to_length;
  p.piece = correlate_piece(p.batch, p.count, kLanes, layout.span());
  void* scratch = scratch_for(p);
  counted_correlate(kAvx2.correlate[static_cast<int>(Element::f32)], p, scratch);
  std::free(scratch);
  return output;
}

std::vector<float> wgrad(const Call& c, std::FILE* calls) {
  const auto pattern = read_pattern(c, calls);
  auto grad = read<float>(calls, c.batch * c.out_channels * c.out_length);
  auto input = read<float>(calls, c.batch * c.in_channels * c.in_length);

  const Layout layout = fprop_layout(c.kernel_size, 1, 1);
  const WgradPiece cut = wgrad_piece(c.batch, c.out_length, kLanes, layout.span());
  const int64_t lane_groups = ceil_div(c.batch * ceil_div(c.out_length, cut.piece), kLanes);
  const int64_t splits = wgrad_splits(lane_groups);
  std::vector<float> partial(splits * c.nnz);
  WeightGradient p{};
  std::vector<int32_t> rows(c.nnz);
  plan_fprop(shape_of(c), pattern.pointers.data(), pattern.taps.data(), rows.data());
  const auto starts =
      block_starts(pattern.pointers.data(), c.out_channels, c.in_channels, layout.block_channels);
  p.entries = {starts.data(), rows.data(),    layout.blocks(c.in_channels),
               c.in_channels, c.out_channels, 1};
  p.tile = layout.shape();
  p.grad = view(grad, c.out_channels, c.out_length);
  p.in = view(input, c.in_channels, c.in_length);
  p.in_length = c.in_length;
  p.mode = PaddingMode::zeros;
  p.origin = -c.left;
  p.partial = partial.data();
  p.nnz = c.nnz;
  p.splits = splits;
  p.batch = c.batch;
  p.count = c.out_length;
  p.piece = cut.piece;
  p.tile_length = cut.tile_length;
  void* scratch = scratch_for(p);
  counted_wgrad(kAvx2.wgrad[static_cast<int>(Element::f32)], p, scratch);
  std::free(scratch);
  for (int64_t i = c.nnz; i < splits * c.nnz; ++i) {
    partial[i % c.nnz] += partial[i];
  }
  partial.resize(c.nnz);
  return partial;
}

}  // namespace

int main(int n_arguments, char** arguments) {
  if (n_arguments != 3) {
    std::fprintf(stderr, "usage: %s calls results\n", arguments[0]);
    return 2;
  }
  std::FILE* calls = open(arguments[1], "rb");
  std::FILE* results = open(arguments[2], "wb");
  for (Call c; std::fread(&c, sizeof c, 1, calls) == 1;) {
    const std::vector<float> result =
        c.computation == kWgrad ? wgrad(c, calls) : correlate(c, calls);
    counted_all();
    if (std::fwrite(result.data(), sizeof(float), result.size(), results) != result.size()) {
      std::perror(arguments[2]);
      return 2;
    }
  }
  return std::fclose(results) == 0 ? 0 : 2;
}
