
#include <torch/library.h>

#include <vector>

#include "../../checks.h"
#include "../launch.h"
#include "../layout.h"

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
struct PointwiseEpilogue {
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
                const PointwiseEpilogue* epilogue) {
  check_signal(input, "input", g.in_channels());
  const int64_t length = input.size(2);
  check_lengths(g, length);
  const Element element = element_of(input);
  check_values(values, input);
  const int64_t nnz = values.numel();
  check_pointers(crow, "crow_indices", g.n_kernels(), nnz);
  const Layout layout = fprop_layout(g);
  check_rows(rows, nnz, layout, g.channels_per_group);
  const Tensor weights = values.to(acc_type(input)).contiguous();
  const Tensor init = start_values(input, bias, "bias", g.out_channels);

  const int64_t out_length = g.output_length(length);
  std::vector<int32_t> starts;
  Correlation p{};
  p.entries = block_entries(crow.const_data_ptr<int32_t>(), rows.const_data_ptr<int32_t>(),
                            g.out_channels, g.channels_per_group, g.groups, layout, &starts);
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
  Tensor epilogue_weight, epilogue_bias;
  int64_t channels = g.out_channels;
  if (epilogue != nullptr) {
    TORCH_CHECK_TYPE(element == Element::f32 || element == Element::f64,
                     "expected float32 or float64, but got ", input.scalar_type(),
                     "; convolve in two steps");
    check_same_type(input, epilogue->weight, "weight");
    TORCH_CHECK_VALUE(epilogue->weight.dim() == 3 && epilogue->weight.size(1) == g.out_channels &&
                          epilogue->weight.size(2) == 1,
                      "expected weight of shape (C_out, ", g.out_channels, ", 1), but got ",
                      epilogue->weight.sizes());
    channels = epilogue->weight.size(0);
    epilogue_weight = epilogue->weight.select(2, 0).t().contiguous();
    epilogue_bias = start_values(input, epilogue->bias, "weight_bias", channels);
    p.epilogue_weight = epilogue_weight.const_data_ptr();
    p.epilogue_bias = epilogue_bias.defined() ? epilogue_bias.const_data_ptr() : nullptr;
    p.epilogue_channels = channels;
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
             at::IntArrayRef geometry,
             bool relu) {
  return convolve(input, values, bias, crow, rows, check_geometry(geometry), relu, nullptr);
}

Tensor fprop_pointwise(const Tensor& input,
                       const Tensor& values,
                       const std::optional<Tensor>& bias,
                       const Tensor& crow,
                       const Tensor& rows,
                       at::IntArrayRef geometry,
                       bool relu,
                       const Tensor& weight,
                       const std::optional<Tensor>& weight_bias) {
  const PointwiseEpilogue epilogue{weight, weight_bias};
  return convolve(input, values, bias, crow, rows, check_geometry(geometry), relu, &epilogue);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("fprop", fprop);
  m.impl("fprop_pointwise", fprop_pointwise);
}

}  // namespace sparseconv
