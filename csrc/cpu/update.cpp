#include "update.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "../checks.h"
#include "isa/dispatch.h"
#include "kernels.h"

namespace sparseconv {
namespace {

// Bits that compare as numbers do that are not negative.
uint32_t ordered(float x) {
  return std::bit_cast<uint32_t>(x);
}
uint64_t ordered(double x) {
  return std::bit_cast<uint64_t>(x);
}

// Tells of each key, in their order, whether it is among the `wanted` smallest, at least one: of
// equal keys the first ones are. Counting digits takes a third of the time of std::nth_element.
template <typename Key>
class SmallestKeys {
 public:
  SmallestKeys(const std::vector<Key>& keys, int64_t wanted) {
    constexpr int kBits = 11;
    Key found = 0;  // which bits of limit_ are
    for (int shift = 8 * sizeof(Key) - kBits;; shift = std::max(shift - kBits, 0)) {
      std::array<int64_t, 1 << kBits> counts{};
      for (const Key key : keys) {
        if ((key & found) == limit_) {
          ++counts[(key >> shift) % counts.size()];
        }
      }
      Key digit = 0;
      for (; counts[digit] < wanted; ++digit) {
        wanted -= counts[digit];
      }
      limit_ |= digit << shift;
      found |= Key{counts.size() - 1} << shift;
      const bool all = counts[digit] == wanted;  // that begin with the digits found
      if (all || shift == 0) {
        limit_ |= ~found;
        equals_ = all ? std::numeric_limits<int64_t>::max() : wanted;
        return;
      }
    }
  }
  bool has(Key key) {  // without a branch, which would be guessed wrong half of the times
    const bool one_more = (key == limit_) & (equals_ > 0);
    equals_ -= one_more;
    return (key < limit_) | one_more;
  }

 private:
  Key limit_ = 0;
  int64_t equals_ = 0;
};

// A bit for each weight of a layer.
struct Bits {
  explicit Bits(int64_t size) : words((size + 63) / 64) {}
  void set(int64_t i, bool value = true) { words[i / 64] |= uint64_t{value} << (i % 64); }
  std::vector<uint64_t> words;
};

constexpr int64_t kDrawsAtOnce = 1024;

class Updating {
 public:
  Updating(const Tensor& crow, const Tensor& col, std::array<int64_t, 3> shape, uint64_t seed)
      : channels_(shape[1]),
        taps_(shape[2]),
        rows_(shape[0] * shape[1]),
        crow_(crow.const_data_ptr<int32_t>()),
        col_(col.const_data_ptr<int32_t>()),
        draws_{static_cast<uint32_t>(seed) | 1, static_cast<uint32_t>(seed >> 32), 0},
        before_(rows_ * taps_),
        pruned_(rows_ * taps_),
        grown_(rows_ * taps_),
        positions_(col.numel()),
        active_(col.numel()) {
    for (int64_t row = 0; row < rows_; ++row) {
      for (int32_t i = crow_[row]; i < crow_[row + 1]; ++i) {
        positions_[i] = row * taps_ + col_[i];
        before_.set(positions_[i]);
      }
    }
  }

  // Prunes and grows in one box.
  template <typename T>
  void move(const Box& box, double fraction, const T* magnitudes, const T* scores) {
    const auto [first, end, left, right] = box;
    Frame frame{first * channels_, end * channels_, left, right - left};
    std::vector<decltype(ordered(T{}))> keys(active_.size());
    int64_t n = 0;  // active in the box
    for (int32_t i = crow_[frame.top], last = crow_[frame.bottom]; i < last; ++i) {
      active_[n] = positions_[i];
      keys[n] = ordered(magnitudes[i]);
      n += static_cast<uint64_t>(col_[i] - left) < static_cast<uint64_t>(frame.width);
    }
    keys.resize(n);
    const int64_t size = (frame.bottom - frame.top) * frame.width;
    const auto share = static_cast<int64_t>(std::ceil(fraction * static_cast<double>(n)));
    const int64_t count = std::min(share, size - n);
    if (count > 0) {
      SmallestKeys smallest(keys, count);
      for (int64_t i = 0; i < n; ++i) {
        pruned_.set(active_[i], smallest.has(keys[i]));
      }
      if (scores == nullptr) {
        grow_at_random(frame, count, size - n + count);
      } else {
        grow_by(scores, frame, count);
      }
    }
    drawn_ += size;
  }

  Update result() {
    const int64_t nnz = active_.size(), words = before_.words.size();
    Tensor crow = at::empty({rows_ + 1}, at::kInt), col = at::empty({nnz}, at::kInt);
    Tensor source = at::empty({nnz}, at::kLong);
    int32_t *begin = crow.data_ptr<int32_t>(), *tap = col.data_ptr<int32_t>();
    int64_t* from = source.data_ptr<int64_t>();
    Tensor active = at::empty({(rows_ * taps_ + 7) / 8}, at::kByte);
    int64_t row = 0, end = taps_, n = 0, old = 0;
    *begin = 0;
    for (int64_t word = 0; word < words; ++word) {
      const uint64_t before = before_.words[word], kept = before & ~pruned_.words[word];
      const uint64_t now = grown_.words[word] |= kept;
      for (uint64_t left = before | now; left != 0; left &= left - 1) {
        const int bit = std::countr_zero(left);
        const int64_t position = word * 64 + bit;
        for (; position >= end; end += taps_) {
          begin[++row] = n;
        }
        // Written in any case, and counted if it is there: its branches would be guessed wrong.
        if (n < nnz) {
          tap[n] = position - (end - taps_);
          from[n] = old | -static_cast<int64_t>(~kept >> bit & 1);
        }
        n += now >> bit & 1;
        old += before >> bit & 1;
      }
    }
    TORCH_CHECK_VALUE(n == nnz, "expected disjoint boxes and taps that ascend without repetition");
    std::fill(begin + row + 1, begin + rows_ + 1, n);
    std::memcpy(active.data_ptr(), grown_.words.data(), active.numel());
    return {crow, col, source, active};
  }

 private:
  struct Frame {
    int64_t top, bottom, left, width;  // rows, and taps
  };

  bool is_free(int64_t position) const {
    const int64_t word = position / 64;
    return ~(before_.words[word] & ~pruned_.words[word]) >> (position % 64) & 1;
  }

  void grow_at_random(const Frame& frame, int64_t count, int64_t free) {
    const int64_t size = (frame.bottom - frame.top) * frame.width;
    // Below this limit lie enough, except with a probability of 1e-9: then all are taken.
    const double likely = count + 6 * std::sqrt(static_cast<double>(count)) + 16;
    draws_.limit = static_cast<uint32_t>(std::min(likely / free, 1.0) * kDrawsEnd);
    std::array<uint32_t, kDrawsAtOnce> numbers;
    std::array<uint16_t, kDrawsAtOnce + 15> below;
    std::vector<uint64_t> drawn;  // a number, and the position
    for (;; draws_.limit = kDrawsEnd) {
      drawn.clear();
      for (int64_t i = 0; i < size; i += kDrawsAtOnce) {
        const int64_t n = std::min(size - i, kDrawsAtOnce);
        const int64_t found =
            active_kernels().draws(draws_, drawn_ + i, n, numbers.data(), below.data());
        for (int64_t j = 0; j < found; ++j) {
          const auto at = static_cast<uint32_t>(i + below[j]), row = at / uint32_t(frame.width);
          const int64_t tap = at - row * frame.width + frame.left;
          const int64_t position = (frame.top + row) * taps_ + tap;
          if (is_free(position)) {
            drawn.push_back(uint64_t{numbers[below[j]]} << 32 | position);
          }
        }
      }
      if (static_cast<int64_t>(drawn.size()) >= count || draws_.limit == kDrawsEnd) {
        break;
      }
    }
    SmallestKeys smallest(drawn, count);
    for (const uint64_t draw : drawn) {
      grown_.set(draw & 0xffffffff, smallest.has(draw));
    }
  }

  // Where the scores are largest.
  template <typename T>
  void grow_by(const T* scores, const Frame& frame, int64_t count) {
    std::vector<decltype(ordered(T{}))> keys;
    std::vector<int32_t> free;
    for (int64_t row = frame.top; row < frame.bottom; ++row) {
      const int64_t start = row * taps_ + frame.left;
      for (int64_t position = start; position < start + frame.width; ++position) {
        if (is_free(position)) {
          free.push_back(position);
          keys.push_back(~ordered(scores[position]));
        }
      }
    }
    SmallestKeys smallest(keys, count);
    for (size_t i = 0; i < free.size(); ++i) {
      grown_.set(free[i], smallest.has(keys[i]));
    }
  }

  int64_t channels_, taps_, rows_;
  const int32_t *crow_, *col_;
  Draws draws_;
  Bits before_, pruned_, grown_;
  std::vector<int32_t> positions_, active_;  // of all entries, and of those in the box
  int64_t drawn_ = 0;                        // positions of the boxes before
};

}  // namespace

Update prune_and_grow(const Tensor& crow,
                      const Tensor& col,
                      std::array<int64_t, 3> shape,
                      const std::vector<Box>& boxes,
                      double fraction,
                      const Tensor& magnitudes,
                      const std::optional<Tensor>& scores,
                      uint64_t seed) {
  const int64_t rows = shape[0] * shape[1];
  check_pattern(crow, col, rows, shape[2]);
  TORCH_CHECK_VALUE(magnitudes.numel() == col.numel(), "expected ", col.numel(),
                    " magnitudes, but got ", magnitudes.numel());
  TORCH_CHECK_VALUE(!scores || (scores->numel() == rows * shape[2] &&
                                scores->scalar_type() == magnitudes.scalar_type()),
                    "expected scores of ", rows * shape[2], " weights and the dtype of magnitudes");
  for (const auto& [first, end, left, right] : boxes) {
    TORCH_CHECK_VALUE(0 <= first && first <= end && end <= shape[0] && 0 <= left && left <= right &&
                          right <= shape[2],
                      "expected boxes inside a weight of shape ", at::IntArrayRef(shape));
  }
  Updating updating(crow, col, shape, seed);
  const auto move = [&]<typename T>(T) {
    const Tensor held = magnitudes.contiguous(), by = scores ? scores->contiguous() : Tensor();
    for (const Box& box : boxes) {
      updating.move(box, fraction, held.const_data_ptr<T>(),
                    scores ? by.const_data_ptr<T>() : nullptr);
    }
  };
  magnitudes.scalar_type() == at::kDouble ? move(double{}) : move(float{});
  return updating.result();
}

}  // namespace sparseconv
