#include "update.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "../checks.h"

namespace sparseconv {
namespace {

// Half of the weights go, at random: loops over them choose by arithmetic, for a branch would be
// mispredicted every other time.
using Numbers = std::vector<int32_t>;
using Ranks = std::vector<uint64_t>;
constexpr int32_t kMost = std::numeric_limits<int32_t>::max();

void check_pattern(const Tensor& crow, const Tensor& col, const Shape& shape) {
  const auto [out_channels, channels, kernel_size] = shape;
  TORCH_CHECK_VALUE(
      out_channels >= 1 && channels >= 1 && kernel_size >= 1 && channels <= kMost / out_channels &&
          kernel_size <= kMost / (out_channels * channels),
      "expected a shape of less than 2**31 weights, but got ", at::IntArrayRef(shape));
  check_indices(col, "col_indices", col.numel());
  check_pointers(crow, "crow_indices", out_channels * channels, col.numel());
  check_below(col, "col_indices", kernel_size);
}

const double* check_doubles(const Tensor& x, const char* name, int64_t size) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kDouble && x.device().is_cpu(), "expected ", name,
                   " in float64 on the CPU, but got ", x.scalar_type(), " on ", x.device());
  TORCH_CHECK_VALUE(x.is_contiguous() && x.numel() == size, "expected ", name, " of ", size,
                    " contiguous numbers, but got shape ", x.sizes());
  check_memory(x, name);
  return x.const_data_ptr<double>();
}

// The bits of magnitudes are ordered as they are. NaN counts as infinite.
uint64_t magnitude(double x) {
  return std::bit_cast<uint64_t>(std::isnan(x) ? std::numeric_limits<double>::infinity()
                                               : std::fabs(x));
}

// Marks the `count` >= 1 smallest ranks; the first ones among equals.
std::vector<uint8_t> least(const Ranks& ranks, int64_t count) {
  // Those with the exponent and first bits of the last one are few, which are sorted in part.
  constexpr int kDropped = 64 - 15;
  std::vector<int32_t> sizes(1 << 15);
  for (const uint64_t rank : ranks) {
    ++sizes[rank >> kDropped];
  }
  uint64_t part = 0;
  int64_t rest = count;
  for (; rest > sizes[part]; ++part) {
    rest -= sizes[part];
  }
  Ranks near(ranks.size());
  std::size_t n = 0;
  for (const uint64_t rank : ranks) {
    near[n] = rank;
    n += rank >> kDropped == part;
  }
  near.resize(n);
  const auto last = near.begin() + (rest - 1);
  std::nth_element(near.begin(), last, near.end());
  const uint64_t limit = *last;
  int64_t equals = std::count(near.begin(), last + 1, limit);
  std::vector<uint8_t> chosen(ranks.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    chosen[i] = ranks[i] < limit;
  }
  for (std::size_t i = 0; equals > 0; ++i) {
    chosen[i] |= ranks[i] == limit;
    equals -= ranks[i] == limit;
  }
  return chosen;
}

// Those of ascending numbers that are (not) marked.
Numbers select(const Numbers& numbers, const std::vector<uint8_t>& marks, bool marked) {
  Numbers found(numbers.size() + 1);
  std::size_t n = 0;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    found[n] = numbers[i];
    n += (marks[i] != 0) == marked;
  }
  found.resize(n);
  return found;
}

// A set of numbers below `size`.
class Members {
 public:
  explicit Members(int64_t size) : words_(ceil_div(size, 64)) {}
  void add(int64_t member) { words_[member / 64] |= uint64_t{1} << member % 64; }
  Numbers ascending() const {
    Numbers found;
    for (std::size_t word = 0; word < words_.size(); ++word) {
      for (uint64_t bits = words_[word]; bits != 0; bits &= bits - 1) {
        found.push_back(static_cast<int32_t>(word * 64 + std::countr_zero(bits)));
      }
    }
    return found;
  }

 private:
  std::vector<uint64_t> words_;
};

// The n-th (from 0) positions that are not taken, for each n; all ascend.
Numbers nth_free(Numbers n, const Numbers& taken) {
  std::size_t before = 0;
  for (int32_t& position : n) {
    // The k-th taken position has taken[k] - k free ones before it.
    while (before < taken.size() && taken[before] - static_cast<int32_t>(before) <= position) {
      ++before;
    }
    position += static_cast<int32_t>(before);
  }
  return n;
}

// Draws `count` <= total / 2 distinct members of range(total), all subsets equally likely;
// ascending. Duplicates are drawn again among the rest.
Numbers draw_subset(int64_t total, int64_t count, const std::optional<at::Generator>& generator) {
  const Tensor draws = at::randint(total, {count}, generator, at::TensorOptions(at::kLong));
  Members drawn(total);
  const auto* const members = draws.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    drawn.add(members[i]);
  }
  const Numbers distinct = drawn.ascending();
  const auto n = static_cast<int64_t>(distinct.size());
  if (n == count) {
    return distinct;
  }
  for (const int32_t member : nth_free(draw_subset(total - n, count - n, generator), distinct)) {
    drawn.add(member);
  }
  return drawn.ascending();
}

// A region's rows (kernels) and taps. Its positions are counted along this box, which keeps the
// order of CSR.
struct Box {
  int32_t first_row, end_row, left, width;

  int64_t size() const { return int64_t{end_row - first_row} * width; }
  int32_t flat(int32_t position, int32_t kernel_size) const {
    return (first_row + position / width) * kernel_size + left + position % width;
  }
};

// The `count` positions of a box with the largest gradients that are not taken.
Numbers largest(const Box& box,
                const double* gradient,
                int32_t kernel_size,
                const Numbers& taken,
                int64_t count) {
  Numbers all(box.size() - static_cast<int64_t>(taken.size()));
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i] = static_cast<int32_t>(i);
  }
  const Numbers free = nth_free(std::move(all), taken);
  Ranks ranks(free.size());
  for (std::size_t i = 0; i < free.size(); ++i) {
    ranks[i] = ~magnitude(gradient[box.flat(free[i], kernel_size)]);
  }
  return select(free, least(ranks, count), true);
}

}  // namespace

std::optional<std::tuple<Tensor, Tensor, Tensor>> prune_and_grow(
    const Tensor& crow_indices,
    const Tensor& col_indices,
    Shape shape,
    const Tensor& values,
    const std::vector<std::array<int64_t, 4>>& regions,
    double fraction,
    const std::optional<Tensor>& gradient,
    const std::optional<at::Generator>& generator) {
  check_pattern(crow_indices, col_indices, shape);
  TORCH_CHECK_VALUE(0 <= fraction && fraction <= 1, "expected a fraction in [0, 1], but got ",
                    fraction);
  const auto [out_channels, channels, kernel_size] = shape;
  const int64_t n_rows = out_channels * channels, nnz = col_indices.numel();
  const int64_t numel = n_rows * kernel_size;
  const auto n_taps = static_cast<int32_t>(kernel_size);
  const auto* crow = crow_indices.const_data_ptr<int32_t>();
  const auto* col = col_indices.const_data_ptr<int32_t>();
  const double* weights = check_doubles(values, "values", nnz);
  const double* slopes = gradient ? check_doubles(*gradient, "dense_grad", numel) : nullptr;

  std::vector<uint8_t> pruned(nnz);
  Members grown(numel);
  int64_t n_grown = 0;
  for (const auto& [first, end, left, right] : regions) {
    TORCH_CHECK_VALUE(0 <= first && first <= end && end <= out_channels && 0 <= left &&
                          left <= right && right <= kernel_size,
                      "expected regions inside the weight");
    const Box box{static_cast<int32_t>(first * channels), static_cast<int32_t>(end * channels),
                  static_cast<int32_t>(left), static_cast<int32_t>(right - left)};
    const std::size_t most = crow[box.end_row] - crow[box.first_row];
    Numbers entries(most), positions(most);
    Ranks magnitudes(most);
    std::size_t n = 0;
    for (int32_t row = box.first_row; row < box.end_row; ++row) {
      for (int32_t e = crow[row]; e < crow[row + 1]; ++e) {
        const int32_t tap = col[e] - box.left;
        entries[n] = e;
        positions[n] = (row - box.first_row) * box.width + tap;
        magnitudes[n] = magnitude(weights[e]);
        n += tap >= 0 && tap < box.width;
      }
    }
    entries.resize(n), positions.resize(n), magnitudes.resize(n);
    const int64_t free = box.size() - static_cast<int64_t>(n);
    const int64_t count =
        std::min(static_cast<int64_t>(std::ceil(fraction * static_cast<double>(n))), free);
    if (count == 0) {
      continue;
    }
    const std::vector<uint8_t> leaves = least(magnitudes, count);
    for (std::size_t i = 0; i < n; ++i) {
      pruned[entries[i]] |= leaves[i];
    }
    const Numbers taken = select(positions, leaves, false);
    const Numbers fresh = slopes != nullptr
                              ? largest(box, slopes, n_taps, taken, count)
                              : nth_free(draw_subset(free + count, count, generator), taken);
    for (const int32_t position : fresh) {
      grown.add(box.flat(position, n_taps));
    }
    n_grown += count;
  }
  if (n_grown == 0) {
    return std::nullopt;
  }

  Numbers old(nnz), indices(nnz);
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int32_t e = crow[row]; e < crow[row + 1]; ++e) {
      old[e] = static_cast<int32_t>(row) * n_taps + col[e];
      indices[e] = e;
    }
  }
  const Numbers kept = select(old, pruned, false), kept_from = select(indices, pruned, false);
  const Numbers fresh = grown.ascending();
  TORCH_CHECK_VALUE(static_cast<int64_t>(kept.size() + fresh.size()) == nnz,
                    "expected disjoint regions");
  Tensor new_crow = at::zeros({n_rows + 1}, crow_indices.options());
  Tensor new_col = at::empty({nnz}, col_indices.options());
  Tensor source = at::empty({nnz}, col_indices.options().dtype(at::kLong));
  auto* const starts = new_crow.data_ptr<int32_t>();
  auto* const taps = new_col.data_ptr<int32_t>();
  auto* const from = source.data_ptr<int64_t>();
  std::size_t next = 0, next_fresh = 0;
  for (int64_t i = 0; i < nnz; ++i) {
    const int32_t a = next < kept.size() ? kept[next] : kMost;
    const int32_t b = next_fresh < fresh.size() ? fresh[next_fresh] : kMost;
    const bool is_fresh = b < a;
    const int32_t position = is_fresh ? b : a;
    ++starts[position / n_taps + 1];
    taps[i] = position % n_taps;
    from[i] = is_fresh ? -1 : kept_from[next];
    next += !is_fresh;
    next_fresh += is_fresh;
  }
  std::partial_sum(starts, starts + n_rows + 1, starts);
  return std::tuple{new_crow, new_col, source};
}

void mark_active(const Tensor& bits,
                 const Tensor& crow_indices,
                 const Tensor& col_indices,
                 Shape shape) {
  check_pattern(crow_indices, col_indices, shape);
  const int64_t n_rows = shape[0] * shape[1], kernel_size = shape[2];
  TORCH_CHECK_VALUE(bits.scalar_type() == at::kByte && bits.device().is_cpu() &&
                        bits.is_contiguous() && bits.numel() == ceil_div(n_rows * kernel_size, 8),
                    "expected a bit in contiguous uint8 for each of ", n_rows * kernel_size,
                    " weights");
  check_memory(bits, "bits");
  const auto* crow = crow_indices.const_data_ptr<int32_t>();
  const auto* col = col_indices.const_data_ptr<int32_t>();
  auto* const bytes = bits.data_ptr<uint8_t>();
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int32_t e = crow[row]; e < crow[row + 1]; ++e) {
      const int64_t position = row * kernel_size + col[e];
      bytes[position / 8] |= static_cast<uint8_t>(1 << position % 8);
    }
  }
}

}  // namespace sparseconv
