// Random calls of the kernels around the sparse convolutions. Products are exact; averages and
// statistics must be written everywhere, and be the same bits on every instruction set (how
// accurate they are is tested through the ops).
#pragma once

#include "host_run.h"

namespace sparseconv::host {

struct Around {
  int64_t batch, channels, length;
  Element element;
  int kernel;  // of the table's arrays

  int64_t lanes() const { return kRowBytes / size_of(element); }
};

inline Around draw_around(Random& random) {
  const bool wide = random.once_in(3);
  Around a;
  do {
    a = {random.pick({1, 1, 2, 3, 8, 17}), random(1, wide ? 150 : 20),
         random(1, random.once_in(8) ? 700
                   : wide            ? 20
                                     : 80),
         static_cast<Element>(random(0, 1)), 0};
  } while (a.batch * a.length < 2);
  a.kernel = static_cast<int>(a.element);
  return a;
}

inline void pointwise(Run& run, const Around& a) {
  const int64_t rows = run.random(1, a.channels > 20 ? 20 : 150);
  const Signal x = signal(run.random, {a.batch, a.channels, a.length}, a.element);
  const Block weight = numbers(run.random, a.channels * rows, a.element);
  Pointwise p{x.view(), weight.data, nullptr, a.batch, a.length, a.channels, rows};
  run.on_every_isa("pointwise", [&] {
    const Signal y = fresh({a.batch, rows, a.length}, a.element);
    p.out = y.memory.data;
    run(run.table->pointwise[a.kernel], p);
    run.expect(y, {a.batch, rows, a.length}, [&](int64_t n, int64_t r, int64_t l) {
      double sum = 0;
      for (int64_t k = 0; k < a.channels; ++k) {
        sum += get(weight.data, k * rows + r, a.element) * x.at(n, k, l);
      }
      return sum;
    });
  });
}

inline void pointwise_gradient(Run& run, const Around& a) {
  const int64_t lanes = run.random(1, a.channels > 20 ? 20 : 150);
  const Signal row_side = signal(run.random, {a.batch, a.channels, a.length}, a.element);
  const Signal lane_side = signal(run.random, {a.batch, lanes, a.length}, a.element);
  PointwiseGradient p{};
  p.row_side = row_side.view();
  p.lane_side = lane_side.view();
  p.rows = a.channels;
  p.lanes = lanes;
  p.partial_stride = ceil_div(lanes, a.lanes()) * a.lanes();
  p.splits = run.random(1, std::min<int64_t>(8, a.batch * a.length));
  p.batch = a.batch;
  p.length = a.length;
  run.on_every_isa("pointwise_gradient", [&] {
    const Signal partial = fresh({p.splits, p.rows, p.partial_stride}, a.element);
    p.partial = partial.memory.data;
    run(run.table->pointwise_gradient[a.kernel], p);
    for (int64_t r = 0; r < p.rows; ++r) {
      for (int64_t c = 0; c < lanes; ++c) {
        double found = 0, wanted = 0;
        for (int64_t split = 0; split < p.splits; ++split) {
          found += partial.at(split, r, c);
        }
        for (int64_t j = 0; j < a.batch * a.length; ++j) {
          wanted += row_side.at(j / a.length, r, j % a.length) *
                    lane_side.at(j / a.length, c, j % a.length);
        }
        run.expect(found, wanted);
      }
    }
  });
}

// What the first instruction set wrote: all of it, and the others the same.
class Same {
 public:
  void operator()(Run& run, const Block& found, Element element) {
    for (int64_t i = 0; i < found.bytes() / size_of(element); ++i, ++at_) {
      const double x = get(found.data, i, element);
      if (run.first()) {
        first_.push_back(x);
      }
      run.expect(x, first_[at_]);
    }
  }
  void begin() { at_ = 0; }

 private:
  std::vector<double> first_;
  size_t at_ = 0;
};

inline void batch_norm_relu(Run& run, const Around& a) {
  const Sizes sizes = {a.batch, a.channels, a.length}, channels = {1, 1, a.channels};
  const Signal x = signal(run.random, sizes, a.element),
               grad = signal(run.random, sizes, a.element);
  const Block weight = numbers(run.random, a.channels, a.element);
  const Block bias = numbers(run.random, a.channels, a.element);
  const bool affine = run.random.once_in(2), running = run.random.once_in(2);
  Same same;
  run.on_every_isa("batch_norm_relu", [&] {
    same.begin();
    const Signal y = fresh(sizes, a.element), dx = fresh(sizes, a.element);
    Signal vectors[6] = {fresh(channels, a.element), fresh(channels, a.element),
                         fresh(channels, a.element), fresh(channels, a.element),
                         fresh(channels, a.element), fresh(channels, a.element)};
    for (int64_t c = 0; c < a.channels; ++c) {
      set(vectors[2].memory.data, c, a.element, 0);
      set(vectors[3].memory.data, c, a.element, 1);
    }
    BatchNormRelu p{};
    p.in = x.view();
    p.out = y.memory.data;
    p.weight = affine ? weight.data : nullptr;
    p.bias = affine ? bias.data : nullptr;
    p.mean = vectors[0].memory.data;
    p.invstd = vectors[1].memory.data;
    p.running_mean = running ? vectors[2].memory.data : nullptr;
    p.running_var = running ? vectors[3].memory.data : nullptr;
    p.momentum = 0.1;
    p.eps = 1e-5;
    p.batch = a.batch;
    p.channels = a.channels;
    p.length = a.length;
    run(run.table->batch_norm_relu[a.kernel], p);
    BatchNormReluGradient q{};
    q.grad = grad.view();
    q.in = p.in;
    q.grad_in = dx.memory.data;
    q.weight = p.weight;
    q.bias = p.bias;
    q.mean = p.mean;
    q.invstd = p.invstd;
    q.grad_weight = vectors[4].memory.data;
    q.grad_bias = vectors[5].memory.data;
    q.batch = a.batch;
    q.channels = a.channels;
    q.length = a.length;
    run(run.table->batch_norm_relu_gradient[a.kernel], q);
    same(run, y.memory, a.element);
    same(run, dx.memory, a.element);
    for (const Signal& vector : vectors) {
      same(run, vector.memory, a.element);
    }
  });
}

inline void pool(Run& run, const Around& a) {
  const int64_t bins = run.random(1, 2 * a.length);
  const int64_t series = a.batch * a.channels;
  const Block x = numbers(run.random, series * a.length, a.element);
  const Block grad = numbers(run.random, series * bins, a.element);
  Same same;
  run.on_every_isa("pool", [&] {
    same.begin();
    const Signal y = fresh({1, series, bins}, a.element);
    const Signal dx = fresh({1, series, a.length}, a.element);
    run(run.table->pool[a.kernel], Pool{x.data, y.memory.data, series, a.length, bins});
    run(run.table->pool_gradient[a.kernel],
        Pool{grad.data, dx.memory.data, series, a.length, bins});
    same(run, y.memory, a.element);
    same(run, dx.memory, a.element);
  });
}

inline void around(Run& run) {
  const Around a = draw_around(run.random);
  void (*const all[])(Run&, const Around&) = {pointwise, pointwise_gradient, batch_norm_relu, pool};
  all[run.random(0, 3)](run, a);
}

}  // namespace sparseconv::host
