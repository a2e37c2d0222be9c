// Lanes, and how numbers are converted. Included once per ISA, after its vec_*.h.

template <typename V>
static inline V mul(V a, V b) {
  return {a.v * b.v};
}
template <typename V>
static inline V add(V a, V b) {
  return {a.v + b.v};
}
template <typename V>
static inline V sub(V a, V b) {
  return {a.v - b.v};
}

typedef int32_t Integers __attribute__((vector_size(sizeof(F32))));

static inline Counts load_counts(const float* p) {
  return {reinterpret_cast<decltype(Counts::v)>(F32::load(p).v)};
}
static inline void store_counts(Counts n, float* p) {
  F32{reinterpret_cast<decltype(F32::v)>(n.v)}.store(p);
}
static inline F32 shares_of(Counts n, int64_t of) {
  const auto counts = reinterpret_cast<Integers>(n.v);
  return {__builtin_convertvector(counts, decltype(F32::v)) / F32::splat(static_cast<float>(of)).v};
}
template <typename T>
constexpr int kLanes = static_cast<int>(kRowBytes / sizeof(T));
template <typename T>
constexpr int kBlock = Vec<T>::kWidth;

static inline float to_acc(float x) {
  return x;
}
static inline double to_acc(double x) {
  return x;
}
static inline float to_acc(Half x) {
  return half_to_float(x.bits);
}
static inline void from_acc(float x, float* y) {
  *y = x;
}
static inline void from_acc(double x, double* y) {
  *y = x;
}
static inline void from_acc(float x, Half* y) {
  y->bits = float_to_half(x);
}

// What one lane of a tile computes, of a signal in any order.
struct Lane {
  int64_t item;   // batch item, or -1: the lane is idle
  int64_t start;  // output of the tile's first row; negative where that is idle
  int64_t skip;   // number of first rows of the tile that are idle (perhaps all of them)
  int64_t run;    // number of lanes from this one on that are neighbours in a series
};

// The lanes of one group, for a tile that begins at row `at`. The runs of tensors are of no use.
template <typename T>
struct TileLanes {
  Lane lane[kLanes<T> * kWideMost];

  TileLanes(const LaneOrder& y, int64_t group, int64_t at) {
    const int64_t width = y.lanes * y.wide, unit = group * width;
    int64_t phase = unit % y.apart, piece = unit / y.apart % y.pieces;
    int64_t item = unit / y.apart / y.pieces;
    for (int64_t l = 0; l < width; ++l) {
      const int64_t start = (piece * y.rows + at) * y.apart + phase - y.idle;
      lane[l] = {item, start, start < 0 ? ceil_div(-start, y.apart) : 0, 1};
      if (item >= y.batch) {
        lane[l] = {-1, 0, 0, 1};
      } else if (++phase == y.apart) {
        phase = 0;
        piece = piece + 1 == y.pieces ? 0 : piece + 1;
        item += piece == 0;
      }
    }
    for (int64_t l = width - 1; y.apart > 1 && l > 0; --l) {
      const Lane &a = lane[l - 1], &b = lane[l];
      if (a.item == b.item && (a.item < 0 || a.start + 1 == b.start)) {
        lane[l - 1].run += b.run;
      }
    }
  }

  // Fills in the lanes that are idle in each of the first rows; returns how many rows that are.
  int64_t idle(const LaneOrder& y, int64_t rows, uint32_t* sets) const {
    int64_t most = 0;
    for (int64_t l = 0; l < y.lanes * y.wide; ++l) {
      most = max_of(most, min_of(lane[l].skip, rows));
    }
    for (int64_t r = 0; r < most * y.wide; ++r) {
      sets[r] = 0;
      for (int64_t l = 0; l < y.lanes; ++l) {
        sets[r] |= static_cast<uint32_t>(lane[r % y.wide * y.lanes + l].skip > r / y.wide) << l;
      }
    }
    return most * y.wide;
  }
};

// Which lanes of a group are what, one bit each.
struct LaneSets {
  uint32_t real;   // not idle
  uint32_t first;  // of the first piece of a series
  uint32_t last;   // of the last piece
};

static LaneSets lane_sets(const LaneOrder& y, int64_t group) {
  LaneSets sets = {0, 0, 0};
  for (int64_t l = 0; l < y.lanes; ++l) {
    const int64_t unit = group * y.lanes + l, piece = unit % y.pieces;
    const uint32_t bit = 1u << l;
    if (unit < y.batch * y.pieces) {
      sets.real |= bit;
      sets.first |= piece == 0 ? bit : 0;
      sets.last |= piece == y.pieces - 1 ? bit : 0;
    }
  }
  return sets;
}

// The lanes of a vector that begins at lane h of a row.
template <typename V>
static inline uint32_t lanes_from(uint32_t set, int h) {
  return set >> h & ((1u << V::kWidth) - 1);
}

// A row as one vector, whose lanes are the first steps of sum_lanes: lanes j and j + half.
template <typename V>
static inline V fold(const typename V::T* row) {
  constexpr int kParts = kLanes<typename V::T> / V::kWidth;
  V part[kParts];
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    part[i] = V::load(row + i * V::kWidth);
  }
#pragma GCC unroll 2
  for (int half = kParts / 2; half > 0; half /= 2) {
#pragma GCC unroll 2
    for (int i = 0; i < half; ++i) {
      part[i] = add(part[i], part[i + half]);
    }
  }
  return part[0];
}

// sums[i] += the sum over the lanes of the vector row(i), for kB rows.
template <typename V, int kB, typename Row>
__attribute__((always_inline)) static inline void add_lane_sums(Row row, typename V::T* sums) {
  constexpr int kW = V::kWidth;
#pragma GCC unroll 8
  for (int i = 0; i < kB; i += kW) {
    V rows[kW];
#pragma GCC unroll 16
    for (int j = 0; j < kW; ++j) {
      rows[j] = i + j < kB ? row(i + j) : V::splat(0);
    }
    const V totals = sum_lanes(rows);
    if (i + kW <= kB) {
      add(V::loadu(sums + i), totals).storeu(sums + i);
    } else {
      const uint32_t rest = (1u << (kB - i)) - 1;
      add(V::load_where(sums + i, rest), totals).store_where(sums + i, rest);
    }
  }
}
