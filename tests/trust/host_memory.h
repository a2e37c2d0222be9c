// What tests/trust/kernels_host.cpp draws and where it lies: memory of exactly the size that a kernel may
// touch, tensors in it of any element and any strides, and random numbers that are whole, so that
// every sum is exact.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>
#include <utility>
#include <vector>

#include "conv1d.h"

namespace sparseconv::host {

// On the heap (for AddressSanitizer), or right behind or right before a page that nobody may touch:
// masked loads and stores are calls of the compiler's own, which sanitizers do not see.
enum class Place { heap, behind_guard, before_guard };
inline Place place = Place::heap;
// Bytes that lack at the end of each output: whoever writes it all is to be caught.
inline int64_t lacking = 0;

// Full of NaN, whatever the type of float.
class Block {
 public:
  Block(int64_t bytes, int64_t alignment) : bytes_(bytes) {
    if (place == Place::heap) {
      alignment = std::max<int64_t>(alignment, sizeof(void*));
      if (posix_memalign(&data, alignment, bytes) != 0) {
        std::abort();
      }
    } else {
      const int64_t page = sysconf(_SC_PAGESIZE), body = ceil_div(bytes, page) * page;
      mapped_ = body + 2 * page;
      start_ = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      char* first = static_cast<char*>(start_) + page;
      if (start_ == MAP_FAILED ||
          (body > 0 && mprotect(first, body, PROT_READ | PROT_WRITE) != 0)) {
        std::perror("guard pages");
        std::exit(2);
      }
      data = first + (place == Place::before_guard ? body - bytes : 0);
    }
    if (bytes > 0) {
      std::memset(data, 0xff, bytes);
    }
  }
  Block(Block&& other) noexcept
      : data(std::exchange(other.data, nullptr)),
        bytes_(other.bytes_),
        start_(std::exchange(other.start_, nullptr)),
        mapped_(other.mapped_) {}
  Block& operator=(Block&&) = delete;
  ~Block() {
    if (start_ != nullptr) {
      munmap(start_, mapped_);
    } else {
      std::free(data);
    }
  }
  int64_t bytes() const { return bytes_; }

  void* data = nullptr;

 private:
  int64_t bytes_;
  void* start_ = nullptr;
  int64_t mapped_ = 0;
};

template <typename T>
Block copied(const std::vector<T>& from) {
  Block block(from.size() * sizeof(T), alignof(T));
  if (!from.empty()) {
    std::memcpy(block.data, from.data(), block.bytes());
  }
  return block;
}
inline const int32_t* ints(const Block& block) {
  return static_cast<const int32_t*>(block.data);
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t operator()(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(engine_() % static_cast<uint64_t>(most - least + 1));
  }
  int64_t pick(std::initializer_list<int64_t> from) {
    return from.begin()[(*this)(0, static_cast<int64_t>(from.size()) - 1)];
  }
  bool once_in(int64_t n) { return (*this)(1, n) == 1; }

 private:
  std::mt19937_64 engine_;
};

inline int64_t size_of(Element e) {
  return e == Element::f64 ? 8 : e == Element::f32 ? 4 : 2;
}
inline Element accumulator(Element e) {
  return e == Element::f64 ? e : Element::f32;
}

inline double get(const void* data, int64_t i, Element e) {
  switch (e) {
    case Element::f64:
      return static_cast<const double*>(data)[i];
    case Element::f32:
      return static_cast<const float*>(data)[i];
    case Element::f16:
      return static_cast<double>(static_cast<const _Float16*>(data)[i]);
    default: {
      const uint32_t bits = uint32_t{static_cast<const uint16_t*>(data)[i]} << 16;
      float x;
      std::memcpy(&x, &bits, sizeof x);
      return x;
    }
  }
}

inline void set(void* data, int64_t i, Element e, double x) {
  switch (e) {
    case Element::f64:
      static_cast<double*>(data)[i] = x;
      break;
    case Element::f32:
      static_cast<float*>(data)[i] = static_cast<float>(x);
      break;
    case Element::f16:
      static_cast<_Float16*>(data)[i] = static_cast<_Float16>(static_cast<float>(x));
      break;
    default: {
      const float single = static_cast<float>(x);
      uint32_t bits;
      std::memcpy(&bits, &single, sizeof bits);
      bits += 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
      static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(bits >> 16);
    }
  }
}

// What `x` becomes in this element.
inline double rounded(double x, Element e) {
  double slot;
  set(&slot, 0, e, x);
  return get(&slot, 0, e);
}

// Numbers -most ... most; float64 holds them as float32 does.
inline Block numbers(Random& random, int64_t n, Element e, int64_t most = 8) {
  Block block(n * size_of(e), size_of(e));
  for (int64_t i = 0; i < n; ++i) {
    set(block.data, i, e, static_cast<double>(random(-most, most)));
  }
  return block;
}

using Sizes = int64_t[3];

struct Signal {
  Block memory;
  Element element;
  int64_t stride[3];

  double at(int64_t n, int64_t c, int64_t l) const {
    return get(memory.data, n * stride[0] + c * stride[1] + l * stride[2], element);
  }
  TensorView view() const { return {memory.data, {stride[0], stride[1], stride[2]}}; }
};

// (batch, channel, position) in any layout that torch can express; no element lies outside it.
inline Signal signal(Random& random, const Sizes& sizes, Element e) {
  int order[3] = {2, 1, 0};  // innermost first: contiguous
  const bool contiguous = random.once_in(2);
  if (!contiguous) {
    for (int i = 2; i > 0; --i) {
      std::swap(order[i], order[random(0, i)]);
    }
  }
  int64_t stride[3], step = 1, reach = 1;
  for (const int d : order) {
    const bool expanded = !contiguous && random.once_in(6);
    stride[d] = expanded ? 0 : step * (contiguous || random.once_in(2) ? 1 : random(1, 3));
    step = expanded ? step : stride[d] * sizes[d];
    reach += (sizes[d] - 1) * stride[d];
  }
  return {numbers(random, reach, e), e, {stride[0], stride[1], stride[2]}};
}

// Contiguous and unwritten, aligned as torch's own.
inline Signal fresh(const Sizes& sizes, Element e) {
  const int64_t n = sizes[0] * sizes[1] * sizes[2];
  return {Block(n * size_of(e) - lacking, 64), e, {sizes[1] * sizes[2], sizes[2], 1}};
}

}  // namespace sparseconv::host
