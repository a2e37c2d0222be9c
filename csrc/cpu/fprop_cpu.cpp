
#include <torch/library.h>

#include <vector>

#include "checks.h"
#include "launch.h"
#include "layout.h"

namespace sparseconv {
namespace {

// What each of `channels` sums begins with, in the accumulation type; undefined for zeros.
Tensor start_values(const Tensor& input,
                    const std::optional<Tensor>& bias,
                    const char* name,
                    int64_t channels) {
  if (!bias.has_value()) {
    return {};
  }
  check_vector(*bias, name, input, channels);
  return bias->to(acc_type(input)).contiguous();
}

// A 1x1 convolution of the outputs.
struct Mix {
  const Tensor& weight;
  const std::optional<Tensor>& bias;
};

Tensor convolve(const Tensor& input,
                const Tensor& values,
                const std::optional<Tensor>& bias,
                const Tensor& crow,
                const Tensor& rows,
                const Geometry& g,
                bool relu,
                const Mix* mix) {
  check_signal(input, "input", g.in_channels());
  const int64_t length = input.size(2);
  check_lengths(g, length);
  const Element element = element_of(input);
  check_values(values, input);
  const int64_t nnz = values.numel();
  check_pointers(crow, "crow_indices", g.out_channels * g.row_channels, nnz);
  const Layout layout = fprop_layout(g.kernel_size, g.stride, g.dilation);
  check_rows(rows, nnz, layout, g.row_channels);
  const Tensor weights = values.to(acc_type(input)).contiguous();
  const Tensor init = start_values(input, bias, "bias", g.out_channels);

  const int64_t out_length = g.output_length(length);
  const std::vector<int32_t> starts = block_starts(crow.const_data_ptr<int32_t>(), g.out_channels,
                                                   g.row_channels, layout.block_channels);
  Correlation p{};
  p.entries = {starts.data(),
               rows.const_data_ptr<int32_t>(),
               layout.blocks(g.row_channels),
               g.row_channels,
               g.out_channels,
               g.groups};
  p.tile = layout.shape();
  p.values = weights.const_data_ptr();
  p.init = init.defined() ? init.const_data_ptr() : nullptr;
  p.in = view(input);
  p.in_length = length;
  p.mode = g.mode;
  p.origin = -g.left;
  p.out_length = out_length;
  p.out_step = 1;
  p.relu = relu;
  p.batch = input.size(0);
  p.count = out_length;
  Tensor mix_weight, mix_init;
  int64_t channels = g.out_channels;
  if (mix != nullptr) {
    TORCH_CHECK_TYPE(element == Element::f32 || element == Element::f64,
                     "expected float32 or float64, but got ", input.scalar_type(),
                     "; convolve in two steps");
    check_same_type(input, mix->weight, "weight");
    TORCH_CHECK_VALUE(
        mix->weight.dim() == 3 && mix->weight.size(1) == g.out_channels && mix->weight.size(2) == 1,
        "expected weight of shape (C_out, ", g.out_channels, ", 1), but got ", mix->weight.sizes());
    channels = mix->weight.size(0);
    mix_weight = mix->weight.select(2, 0).t().contiguous();
    mix_init = start_values(input, mix->bias, "weight_bias", channels);
    p.mix = mix_weight.const_data_ptr();
    p.mix_init = mix_init.defined() ? mix_init.const_data_ptr() : nullptr;
    p.mixed = channels;
  }
  Tensor output = at::empty({input.size(0), channels, out_length}, input.options());
  p.out = view(output);
  if (output.numel() > 0) {
    run_correlation(p, element, lanes_of(input), layout.span());
  }
  return output;
}

Tensor fprop(const Tensor& input,
             const Tensor& values,
             const std::optional<Tensor>& bias,
             const Tensor& crow,
             const Tensor& rows,
             at::IntArrayRef shape,
             int64_t stride,
             at::IntArrayRef padding,
             int64_t dilation,
             int64_t groups,
             c10::string_view mode,
             bool relu) {
  const Geometry g = check_geometry(shape, stride, padding, dilation, groups, mode);
  return convolve(input, values, bias, crow, rows, g, relu, nullptr);
}

Tensor fprop_conv1x1(const Tensor& input,
                     const Tensor& values,
                     const std::optional<Tensor>& bias,
                     const Tensor& crow,
                     const Tensor& rows,
                     at::IntArrayRef shape,
                     int64_t stride,
                     at::IntArrayRef padding,
                     int64_t dilation,
                     int64_t groups,
                     c10::string_view mode,
                     bool relu,
                     const Tensor& weight,
                     const std::optional<Tensor>& weight_bias) {
  const Geometry g = check_geometry(shape, stride, padding, dilation, groups, mode);
  const Mix mix{weight, weight_bias};
  return convolve(input, values, bias, crow, rows, g, relu, &mix);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("fprop", fprop);
  m.impl("fprop_conv1x1", fprop_conv1x1);
}

}  // namespace sparseconv
