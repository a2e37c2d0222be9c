// Lanes, and how numbers are converted. Included once per ISA, after its vec_*.h.
//
// A lane is a piece of one series: `piece` neighbouring outputs of one batch item. Lanes are
// independent sequences, so a tap, a stride or a dilation only changes the scratch row that is
// read, every load is aligned, and one long series fills a vector as well as 16 short ones.

template <typename T>
constexpr int kLanes = static_cast<int>(kRowBytes / sizeof(T));
template <typename T>
constexpr int kBlock = sizeof(T) == 4 ? kBlockF32 : kBlockF64;

template <typename A, typename B>
constexpr bool kSame = false;
template <typename A>
constexpr bool kSame<A, A> = true;

static inline int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t max_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static inline float to_acc(float x) {
  return x;
}
static inline double to_acc(double x) {
  return x;
}
static inline float to_acc(Half x) {
  return half_to_float(x.bits);
}
static inline float to_acc(Bf16 x) {
  union {
    uint32_t bits;
    float value;
  } y = {static_cast<uint32_t>(x.bits) << 16};
  return y.value;
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
static inline void from_acc(float x, Bf16* y) {
  union {
    float value;
    uint32_t bits;
  } b = {x};
  const bool nan = (b.bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = b.bits + 0x7fffu + ((b.bits >> 16) & 1);  // to nearest, ties to even
  y->bits = static_cast<uint16_t>(nan ? (b.bits >> 16) | 0x40u : rounded >> 16);
}

struct Lane {
  int64_t item;   // batch item, or -1: the lane is idle
  int64_t start;  // first output of the piece
  int64_t skip;   // outputs at its beginning that the piece before computes too
};

// The last piece of a series is moved back to end with it: no lane ever reads or writes past it.
static void cut_lanes(Lane* lanes,
                      int n_lanes,
                      int64_t group,
                      int64_t batch,
                      int64_t count,
                      int64_t piece) {
  const int64_t pieces = ceil_div(count, piece);
  for (int l = 0; l < n_lanes; ++l) {
    const int64_t unit = group * n_lanes + l;
    if (unit >= batch * pieces) {
      lanes[l] = {-1, 0, 0};
      continue;
    }
    const int64_t first = (unit % pieces) * piece;
    const int64_t start = min_of(first, count - piece);
    lanes[l] = {unit / pieces, start, first - start};
  }
}
