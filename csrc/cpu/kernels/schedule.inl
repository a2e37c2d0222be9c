// Which entries come next, and which rows a thread computes.

// The inputs of the entries that follow, found kAhead entries early: with the row loaded right
// before its use, the multiply-adds that wait for their address keep the ones behind them waiting
// (212 instead of 262 GFLOP/s from L1 on Zen 5; 242, 250 and 254 with 2, 3 and 4 ahead).
template <typename T>
struct Ahead {
  static constexpr int kAhead = 4;
  const T* inputs;
  const int32_t* rows;
  int64_t last;
  const T* at[kAhead];

  Ahead(const T* inputs, const int32_t* rows, int64_t n) : inputs(inputs), rows(rows), last(n - 1) {
#pragma GCC unroll 4
    for (int i = 0; i < kAhead; ++i) {
      at[i] = input_of(i);
    }
  }
  const T* input_of(int64_t e) const {
    return inputs + static_cast<int64_t>(rows[min_of(e, last)]) * kLanes<T>;
  }
  // The inputs of entry e; to be called for 0, 1, 2, ... in turn.
  const T* next(int64_t e) {
    const T* now = at[0];
#pragma GCC unroll 4
    for (int i = 1; i < kAhead; ++i) {
      at[i - 1] = at[i];
    }
    at[kAhead - 1] = input_of(e + kAhead);
    return now;
  }
};

// One thread's share of groups x rows of equal cost (a row costs its entries and its outputs).
struct Share {
  int64_t group_begin;
  int64_t row_begin;  // in the first group
  int64_t group_end;  // inclusive
  int64_t row_end;    // in the last group
};

static inline int64_t rows_cost(const Entries& e, int64_t row) {
  return e.starts[row * e.n_blocks] - e.starts[0] + kStoreCost * row;
}

// The first row before which at least `cost` has been spent.
static int64_t row_at_cost(const Entries& e, int64_t cost) {
  int64_t low = 0, high = e.n_rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (rows_cost(e, middle) < cost) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The same where all rows of a group must be computed by one thread.
static Share share_of_groups(const Entries& e, int64_t groups, int64_t part, int64_t parts) {
  return {groups * part / parts, 0, groups * (part + 1) / parts - 1, e.n_rows};
}

static Share share_of(const Entries& e, int64_t groups, int64_t part, int64_t parts) {
  const int64_t each = rows_cost(e, e.n_rows);
  const int64_t total = groups * each;
  const int64_t begin = total / parts * part + min_of(part, total % parts);
  const int64_t end = begin + total / parts + (part < total % parts ? 1 : 0);
  if (begin == end) {
    return {0, 0, 0, 0};
  }
  // A row belongs to the part that holds the cost at which it begins, so every row has one owner.
  const int64_t last = (end - 1) / each;
  return {begin / each, row_at_cost(e, begin % each), last, row_at_cost(e, end - last * each)};
}
