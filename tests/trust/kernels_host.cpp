// Runs the CPU kernels of every instruction set without torch, on random problems: nothing is read
// or written outside the tensors, index arrays and scratch memory that a call is given, and what
// comes out is exact. tests/test_sanitizers.py builds it with sanitizers. Calls are set up as
// the ops do (csrc/cpu/ops).
//
//   kernels_host SEED CASES heap|behind_guard|before_guard BYTES [LACKING]
//
// BYTES of inputs share the scratch: few of them cut small problems into many blocks. Outputs are
// LACKING bytes too short, which must not go unnoticed.

#include <string>

#include "cpu/isa/dispatch.h"
#include "cpu/plan.h"
#include "host_around.h"
#include "host_convolution.h"
#include "host_run.h"

namespace sparseconv {

static int64_t l1_budget_given = 0;
int64_t l1_input_budget() {
  return l1_budget_given;
}

namespace host {
namespace {

// The pattern and its plan, each array as long as it is.
struct Indices {
  Block starts, rows;
};
Indices indices(const Layout& layout,
                const int32_t* pointers,
                const std::vector<int32_t>& rows,
                int64_t n_rows,
                int64_t channels_per_group) {
  return {copied(block_starts(pointers, n_rows, channels_per_group, layout.block_channels)),
          copied(rows)};
}

PlanShape plan_shape(const Geometry& g) {
  return {g.out_channels, g.channels_per_group, g.kernel_size, g.stride, g.dilation, g.groups};
}

std::vector<int32_t> fprop_rows(const Convolution& c) {
  const Block pointers = copied(c.pointers), taps = copied(c.taps);
  Block rows(c.nnz() * 4, 4);
  plan_fprop(plan_shape(c.g), ints(pointers), ints(taps), static_cast<int32_t*>(rows.data));
  return {ints(rows), ints(rows) + c.nnz()};
}

void correlate(Run& run, Correlation& p, Element element, int64_t span) {
  const int64_t lanes = kRowBytes / size_of(accumulator(element));
  p.piece = correlate_piece(p.batch, p.count, lanes, span,
                            p.epilogue_weight == nullptr ? 1 : run.random(1, 7));
  run(run.table->correlate[static_cast<int>(element)], p);
}

void fprop(Run& run, const Convolution& c) {
  const Element acc = accumulator(c.element);
  const Signal x = signal(run.random, {c.batch, c.g.in_channels(), c.length}, c.element);
  const Block values = numbers(run.random, c.nnz(), acc);
  const Block bias = numbers(run.random, c.g.out_channels, acc);
  const Block weight = numbers(run.random, c.g.out_channels * c.epilogue_channels, acc, 1);
  const Block weight_bias = numbers(run.random, c.epilogue_channels, acc);
  const int64_t channels = c.epilogue_channels > 0 ? c.epilogue_channels : c.g.out_channels;

  std::vector<double> rows(c.batch * c.g.out_channels * c.out_length());
  const auto row = [&](int64_t n, int64_t o, int64_t i) -> double& {
    return rows[(n * c.g.out_channels + o) * c.out_length() + i];
  };
  every_product(c, [&](int64_t n, int64_t o, int64_t channel, int64_t e, int64_t i, int64_t l) {
    row(n, o, i) += get(values.data, e, acc) * x.at(n, channel, l);
  });
  for (int64_t r = 0; r < static_cast<int64_t>(rows.size()); ++r) {
    const int64_t o = r / c.out_length() % c.g.out_channels;
    rows[r] += c.bias ? get(bias.data, o, acc) : 0;
    rows[r] = c.relu && rows[r] < 0 ? 0 : rows[r];
  }
  const auto expected = [&](int64_t n, int64_t m, int64_t i) {
    if (c.epilogue_channels == 0) {
      return row(n, m, i);
    }
    double sum = c.bias ? get(weight_bias.data, m, acc) : 0;
    for (int64_t o = 0; o < c.g.out_channels; ++o) {
      sum += get(weight.data, o * c.epilogue_channels + m, acc) * row(n, o, i);
    }
    return sum;
  };

  const Layout layout = fprop_layout(c.g.kernel_size, c.g.stride, c.g.dilation);
  const Block pointers = copied(c.pointers);
  const Indices index =
      indices(layout, ints(pointers), fprop_rows(c), c.g.out_channels, c.g.channels_per_group);
  const Block segments = copied(layout.segments);
  Correlation p{};
  p.entries = {ints(index.starts),     ints(index.rows), layout.blocks(c.g.channels_per_group),
               c.g.channels_per_group, c.g.out_channels, c.g.groups};
  p.tile = layout.shape();
  p.tile.segments = static_cast<const Segment*>(segments.data);
  p.values = values.data;
  p.init = c.bias ? bias.data : nullptr;
  p.in = x.view();
  p.in_length = c.length;
  p.mode = c.g.mode;
  p.origin = -c.g.left;
  p.out_length = p.count = c.out_length();
  p.out_step = 1;
  p.relu = c.relu;
  p.batch = c.batch;
  if (c.epilogue_channels > 0) {
    p.epilogue_weight = weight.data;
    p.epilogue_bias = c.bias ? weight_bias.data : nullptr;
    p.epilogue_channels = c.epilogue_channels;
  }
  run.on_every_isa(c.epilogue_channels > 0 ? "fprop_conv1x1" : "fprop", [&] {
    const Signal y = fresh({c.batch, channels, c.out_length()}, c.element);
    p.out = y.view();
    correlate(run, p, c.element, layout.span());
    run.expect(y, {c.batch, channels, c.out_length()}, expected);
  });
}

// The gradient of the padding, added to the samples that it was copied from.
void add_fold(Signal& dx, const Block& fold, const Convolution& c) {
  const int64_t width = c.g.left + c.g.right;
  for (int64_t i = 0; i < c.batch * c.g.in_channels() * width; ++i) {
    const int64_t from = i % width, series = i / width;
    const int64_t position = from < c.g.left ? from - c.g.left : c.length + from - c.g.left;
    const int64_t to = series * c.length + fold_position(position, c.length, c.g.mode);
    set(dx.memory.data, to, dx.element,
        get(dx.memory.data, to, dx.element) + get(fold.data, i, dx.element));
  }
}

void add_edge(Run& run, Signal& dx, Correlation p, const Convolution& c, bool left) {
  const int64_t span = c.g.reach() - 1, channels = c.g.in_channels();
  if ((left ? c.g.left : c.g.right) == 0) {
    return;
  }
  const Signal edge = fresh({c.batch, channels, 1}, dx.element);
  p.origin = left ? c.g.left - 1 : p.in_length - c.g.right + span;
  p.scan = left ? Scan::prefix : Scan::suffix;
  p.out = edge.view();
  p.out_length = p.count = 1;
  p.first = 0;
  correlate(run, p, dx.element, span);
  for (int64_t series = 0; series < c.batch * channels; ++series) {
    const int64_t to = series * c.length + (left ? 0 : c.length - 1);
    set(dx.memory.data, to, dx.element,
        get(dx.memory.data, to, dx.element) + get(edge.memory.data, series, dx.element));
  }
}

void dgrad(Run& run, const Convolution& c) {
  const Geometry& g = c.g;
  const bool padded = g.mode != PaddingMode::zeros && g.left + g.right > 0;
  const Element acc = accumulator(c.element), element = padded ? acc : c.element;
  const int64_t channels = g.in_channels(), group_rows = g.out_channels / g.groups;
  const int64_t n_kernels = channels * group_rows, nnz = c.nnz();
  const Signal grad = signal(run.random, {c.batch, g.out_channels, c.out_length()}, element);
  const Block values = numbers(run.random, nnz, acc);

  std::vector<double> sums(c.batch * channels * c.length);
  every_product(c, [&](int64_t n, int64_t o, int64_t channel, int64_t e, int64_t i, int64_t l) {
    sums[(n * channels + channel) * c.length + l] += get(values.data, e, acc) * grad.at(n, o, i);
  });
  const auto expected = [&](int64_t n, int64_t channel, int64_t l) {
    return sums[(n * channels + channel) * c.length + l];
  };

  const Block from = copied(c.pointers), from_taps = copied(c.taps);
  Block pointers((g.stride * n_kernels + 1) * 4, 4), rows(nnz * 4, 4), index(nnz * 4, 4);
  plan_dgrad(plan_shape(g), ints(from), ints(from_taps), static_cast<int32_t*>(pointers.data),
             static_cast<int32_t*>(rows.data), static_cast<int32_t*>(index.data));
  Block weights(nnz * size_of(acc), size_of(acc));
  for (int64_t e = 0; e < nnz; ++e) {
    set(weights.data, e, acc, get(values.data, ints(index)[e], acc));
  }

  std::vector<int64_t> taps;
  const int64_t span = g.reach() - 1;
  const bool edges =
      padded && g.mode == PaddingMode::replicate && g.stride == 1 &&
      std::max(g.left, g.right) <= span &&
      dgrad_layout(g.kernel_size, g.stride, g.dilation, 0, &taps).segments.size() == 1;
  const bool folds = padded && !edges;
  run.on_every_isa("dgrad", [&] {
    Signal dx = fresh({c.batch, channels, c.length}, element);
    Block fold(folds ? c.batch * channels * (g.left + g.right) * size_of(acc) : 0, 64);
    for (int64_t phase = 0; phase < g.stride; ++phase) {
      const Layout layout = dgrad_layout(g.kernel_size, g.stride, g.dilation, phase, &taps);
      const int64_t low = folds ? 0 : g.left;
      const int64_t high = folds ? c.length + g.left + g.right : g.left + c.length;
      const int64_t first = low > phase ? ceil_div(low - phase, g.stride) : 0;
      const int64_t past = high > phase ? ceil_div(high - phase, g.stride) : 0;
      if (past <= first) {
        continue;
      }
      const Block segments = copied(layout.segments);
      const Block starts = copied(block_starts(ints(pointers) + phase * n_kernels, channels,
                                               group_rows, layout.block_channels));
      Correlation p{};
      p.entries = {ints(starts), ints(rows), layout.blocks(group_rows),
                   group_rows,   channels,   g.groups};
      p.tile = layout.shape();
      p.tile.segments = static_cast<const Segment*>(segments.data);
      p.values = weights.data;
      p.in = grad.view();
      p.in_length = c.out_length();
      p.mode = PaddingMode::zeros;
      p.origin = first;
      p.out = dx.view();
      p.out_length = c.length;
      p.first = first * g.stride + phase - g.left;
      p.out_step = g.stride;
      p.fold = folds ? fold.data : nullptr;
      p.fold_left = g.left;
      p.fold_right = g.right;
      p.batch = c.batch;
      p.count = past - first;
      correlate(run, p, element, layout.span());
      if (edges) {
        add_edge(run, dx, p, c, true);
        add_edge(run, dx, p, c, false);
      }
    }
    if (folds) {
      add_fold(dx, fold, c);
    }
    run.expect(dx, {c.batch, channels, c.length}, expected);
  });
}

void wgrad(Run& run, const Convolution& c) {
  const Element acc = accumulator(c.element);
  const int64_t nnz = c.nnz();
  if (nnz == 0) {
    return;
  }
  const Signal x = signal(run.random, {c.batch, c.g.in_channels(), c.length}, c.element);
  const Signal grad = signal(run.random, {c.batch, c.g.out_channels, c.out_length()}, c.element);
  std::vector<double> sums(nnz);
  every_product(c, [&](int64_t n, int64_t o, int64_t channel, int64_t e, int64_t i, int64_t l) {
    sums[e] += grad.at(n, o, i) * x.at(n, channel, l);
  });

  const int64_t lanes = kRowBytes / size_of(acc);
  const Layout layout = fprop_layout(c.g.kernel_size, c.g.stride, c.g.dilation);
  const WgradPiece piece = wgrad_piece(c.batch, c.out_length(), lanes, layout.span());
  const Block pointers = copied(c.pointers);
  const Indices index =
      indices(layout, ints(pointers), fprop_rows(c), c.g.out_channels, c.g.channels_per_group);
  const Block segments = copied(layout.segments);
  WeightGradient p{};
  p.entries = {ints(index.starts),     ints(index.rows), layout.blocks(c.g.channels_per_group),
               c.g.channels_per_group, c.g.out_channels, c.g.groups};
  p.tile = layout.shape();
  p.tile.segments = static_cast<const Segment*>(segments.data);
  p.grad = grad.view();
  p.in = x.view();
  p.in_length = c.length;
  p.mode = c.g.mode;
  p.origin = -c.g.left;
  p.nnz = nnz;
  p.splits = wgrad_splits(ceil_div(c.batch * ceil_div(c.out_length(), piece.length), lanes));
  p.batch = c.batch;
  p.count = c.out_length();
  p.piece = piece.length;
  p.tile_length = piece.tile_length;
  run.on_every_isa("wgrad", [&] {
    const Signal partial = fresh({p.splits, 1, nnz}, acc);
    std::memset(partial.memory.data, 0, partial.memory.bytes());
    p.partial = partial.memory.data;
    run(run.table->wgrad[static_cast<int>(c.element)], p);
    for (int64_t e = 0; e < nnz; ++e) {
      double sum = 0;
      for (int64_t split = 0; split < p.splits; ++split) {
        sum += partial.at(split, 0, e);
      }
      run.expect(sum, sums[e]);
    }
  });
}

void one_case(Run& run) {
  if (run.random.once_in(4)) {
    around(run);
    return;
  }
  const Convolution c = draw_convolution(run.random);
  fprop(run, c);
  dgrad(run, c);
  wgrad(run, c);
}

}  // namespace
}  // namespace host
}  // namespace sparseconv

int main(int n_arguments, char** arguments) {
  using namespace sparseconv;
  if (n_arguments < 5) {
    std::fprintf(stderr, "usage: %s SEED CASES heap|behind_guard|before_guard BYTES [LACKING]\n",
                 arguments[0]);
    return 2;
  }
  const std::string where = arguments[3];
  host::place = where == "heap"           ? host::Place::heap
                : where == "behind_guard" ? host::Place::behind_guard
                                          : host::Place::before_guard;
  l1_budget_given = std::atoll(arguments[4]);
  host::lacking = n_arguments > 5 ? std::atoll(arguments[5]) : 0;
  host::Run run(arguments);
  const int64_t first = std::atoll(arguments[1]), cases = std::atoll(arguments[2]);
  for (int64_t seed = first; seed < first + cases; ++seed) {
    run.begin(seed);
    host::one_case(run);
  }
  run.report();
  return 0;
}
