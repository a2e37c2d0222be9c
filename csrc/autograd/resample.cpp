// Cropping, padding, repeating and summing samples of tensors in lanes or rows.

#include <ATen/Parallel.h>
#include <ATen/ops/constant_pad_nd.h>
#include <torch/library.h>

#include <algorithm>

#include "lanes.h"

namespace sparseconv {

namespace {

// out[t] = sum over j < stride of in[(t * stride + j + start) / repeat], 0 where in has no sample.
// One of repeat and stride is 1. The gradient is the same with -start, and the two exchanged.
struct Resampling {
  int64_t start, repeat, stride;
};

// The rows that each row of the output reads, for each term of its sum, or -1. Both have `margin`
// rows before and after their samples.
std::vector<int32_t> sources_of(const Resampling& r,
                                int64_t length,
                                int64_t samples,
                                int64_t margin = 0) {
  std::vector<int32_t> found((samples + 2 * margin) * r.stride, -1);
  // Terms follow one another: number i of a series reads sample (i + start) / repeat.
  const int64_t end = std::min(samples * r.stride, length * r.repeat - r.start);
  for (int64_t i = std::max<int64_t>(0, -r.start); i < end; ++i) {
    found[margin * r.stride + i] = static_cast<int32_t>(margin + (i + r.start) / r.repeat);
  }
  return found;
}

// From (groups, rows, width) to an output with the same number of groups.
template <typename T, typename Sum, int kWidth>
void run(const Tensor& input, Tensor& output, int64_t terms, const std::vector<int32_t>& sources) {
  const int64_t in_size = input.size(-2) * kWidth, out_size = output.size(-2) * kWidth;
  const T* first = input.const_data_ptr<T>();
  T* first_out = output.mutable_data_ptr<T>();
  const int64_t groups = input.numel() / in_size, grain = 1 + 64 * 1024 / out_size;
  at::parallel_for(0, groups, grain, [&, terms](int64_t group, int64_t end) {
    T* out = first_out + group * out_size;
    for (; group < end; ++group) {
      const T* in = first + group * in_size;
      for (size_t row = 0; row < sources.size(); row += terms, out += kWidth) {
        Sum sum[kWidth] = {};
        for (int64_t j = 0; j < terms; ++j) {
          if (const int64_t from = sources[row + j]; from >= 0) {
            for (int l = 0; l < kWidth; ++l) {
              sum[l] += in[from * kWidth + l];
            }
          }
        }
        for (int l = 0; l < kWidth; ++l) {
          out[l] = static_cast<T>(sum[l]);
        }
      }
    }
  });
}

Tensor of_signal(const Tensor& x, const Resampling& r, int64_t samples) {
  const Tensor repeated = x.unsqueeze(3).expand({-1, -1, -1, r.repeat}).flatten(2);
  const int64_t after = samples * r.stride + r.start - repeated.size(2);
  const Tensor terms =
      at::constant_pad_nd(repeated, {-r.start, after}).unflatten(2, {-1, r.stride});
  Tensor sum = terms.select(3, 0);
  for (int64_t j = 1; j < r.stride; ++j) {
    sum = sum.add(terms.select(3, j));
  }
  return sum;
}

Tensor lanes_resample(const Tensor& input,
                      int64_t start,
                      int64_t repeat,
                      int64_t stride,
                      int64_t batch,
                      int64_t length,
                      int64_t samples) {
  TORCH_CHECK_VALUE(repeat > 0 && stride > 0 && (repeat == 1 || stride == 1) && samples > 0,
                    "expected a repeat and a stride above 0, one of them 1, and at least one "
                    "sample, but got ",
                    repeat, ", ", stride, " and ", samples);
  TORCH_CHECK_VALUE(start < length * repeat && -start < samples * stride,
                    "expected a start at which samples are read, but got ", start);
  const Ordered own(input, batch, length);
  const Tensor x = own.checked(input, {}, "input");
  const Resampling r{start, repeat, stride};
  if (x.scalar_type() == at::kBFloat16) {
    const int64_t margin = margin_of(x, length);
    Tensor output = RowOrder(batch, samples, margin).empty(x.size(0) * kPanelChannels);
    run<at::BFloat16, float, kPanelChannels>(x, output, stride,
                                             sources_of(r, length, samples, margin));
    return output;
  }
  const LaneOrder from = lane_order(batch, length, lanes_of(x));
  const LaneOrder to = lane_order(batch, samples, lanes_of(x));
  const bool wide = x.scalar_type() == at::kDouble;
  const auto run_lanes = wide ? run<double, double, 8> : run<float, float, 16>;
  // Whole series, or pieces that read the same rows each: those that are idle hold zeros.
  if (from.pieces == to.pieces &&
      (from.pieces == 1 || (start == 0 && to.rows * stride == from.rows * repeat &&
                            to.idle * stride == from.idle * repeat))) {
    Tensor output = new_lanes(x.size(0), to, x.options());
    run_lanes(x, output, stride, sources_of(r, from.rows, to.rows));
    return output;
  }
  return lanes_for(to)->enter(of_signal(own->leave(x, x.size(0)), r, samples));
}

variable_list resample_gradients(const Backward& b) {
  const auto [start, repeat, stride, batch, length, samples] = b.numbers<6>();
  return {CALL(lanes_resample)(b.grad, -start, stride, repeat, batch, samples, length)};
}

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_FRAGMENT(sparseconv, m) {
  using namespace sparseconv;
  implement<lanes_resample>(
      m, "lanes_resample",
      [](const Tensor& input, int64_t start, int64_t repeat, int64_t stride, int64_t batch,
         int64_t length, int64_t samples) {
        const Tensor output =
            COMPUTE(lanes_resample)(input, start, repeat, stride, batch, length, samples);
        return recorded<resample_gradients>(output, {},
                                            {start, repeat, stride, batch, length, samples}, input);
      });
}
