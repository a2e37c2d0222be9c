// Runs the CUDA kernels on the CPU, every instance that can compute a call, so that sanitizers see
// what they do: a block is a team of threads, its barriers are theirs. Reads the calls of
// tests/test_cuda_index.py from one file and writes the results to another.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "cuda/correlate.cuh"
#include "cuda/wgrad.cuh"

namespace sparseconv::cuda {
namespace {

using Bytes = std::vector<char>;  // exactly as long as a tensor's memory: one byte more is an error

// The threads of a block take turns: each runs until it waits for others.
class Team {
 public:
  static constexpr int kThreads = kWarps * kLanes;
  struct Barrier {
    int arrived = 0, passed = 0;
  };
  Barrier block, warps[kWarps];
  uint32_t bits[kWarps][kLanes];
  float weights[kWarps][kLanes + 1];

  // Calls body(thread) on every thread. They take turns in ascending or in descending order: what
  // a kernel computes must not depend on it.
  void run(bool ascending, std::function<void(int)> body) {
    body_ = std::move(body);
    step_ = ascending ? 1 : kThreads - 1;
    running_ = kThreads;
    for (int i = kThreads - 1; i >= 0; --i) {
      getcontext(&contexts_[i]);
      contexts_[i].uc_stack.ss_sp = stacks_[i].data();
      contexts_[i].uc_stack.ss_size = stacks_[i].size();
      contexts_[i].uc_link = &main_;
      const auto team = reinterpret_cast<uintptr_t>(this);
      makecontext(&contexts_[i], reinterpret_cast<void (*)()>(&Team::begin), 2,
                  static_cast<unsigned>(team >> 32), static_cast<unsigned>(team));
      done_[i] = false;
    }
    present_ = 0;
    swapcontext(&main_, &contexts_[0]);
  }

  // Returns once `n` threads have called it with this barrier.
  void wait(Barrier& barrier, int n) {
    const int before = barrier.passed;
    if (++barrier.arrived == n) {
      barrier.arrived = 0;
      ++barrier.passed;
    }
    while (barrier.passed == before) {
      next();
    }
  }

 private:
  static void begin(unsigned high, unsigned low) {
    Team& team = *reinterpret_cast<Team*>(uintptr_t{high} << 32 | low);
    team.body_(team.present_);
    team.done_[team.present_] = true;
    if (--team.running_ > 0) {
      team.next();
    }
  }

  void next() {
    const int from = present_;
    do {
      present_ = (present_ + step_) % kThreads;
    } while (done_[present_]);
    if (present_ != from) {
      swapcontext(&contexts_[from], &contexts_[present_]);
    }
  }

  std::function<void(int)> body_;
  ucontext_t main_, contexts_[kThreads];
  std::vector<std::vector<char>> stacks_{kThreads, std::vector<char>(64 * 1024)};
  bool done_[kThreads];
  int running_, present_, step_;
};

class HostBlock {
 public:
  HostBlock(Team& team, int thread, int64_t index) : team_(team), thread_(thread), index_(index) {}
  int64_t index() const { return index_; }
  int warp() const { return thread_ / kLanes; }
  int lane() const { return thread_ % kLanes; }
  void sync() const { team_.wait(team_.block, Team::kThreads); }
  void sync_warp() const { team_.wait(team_.warps[warp()], kLanes); }
  uint32_t any_bits(uint32_t x) const {
    team_.bits[warp()][lane()] = x;
    sync_warp();
    uint32_t all = 0;
    for (const uint32_t bits : team_.bits[warp()]) {
      all |= bits;
    }
    sync_warp();
    return all;
  }
  float* batch() const { return team_.weights[warp()]; }

 private:
  Team& team_;
  int thread_;
  int64_t index_;
};

// Calls kernel(block, shared) on every thread of every block, as a GPU would.
template <typename T, typename Kernel>
void run(const Launch& launch, bool ascending, Kernel kernel) {
  static Team team;
  for (int64_t i = 0; i < launch.blocks; ++i) {
    const int64_t index = ascending ? i : launch.blocks - 1 - i;
    // Fresh memory for each block, exactly as long as asked for, and no value that would pass
    // for a result.
    std::vector<T> shared(launch.shared_bytes / sizeof(T), T(NAN));
    team.run(ascending, [&](int thread) { kernel(HostBlock(team, thread, index), shared.data()); });
  }
}

// Where pointers and rows are no pattern, two warps may well write to the same place.
bool is_pattern = true;

// Computes in both orders of the threads and blocks, and demands the same bits.
template <typename Compute>
Bytes computed(int64_t size, Compute compute) {
  Bytes results[2] = {Bytes(size, '\xff'), Bytes(size, '\xff')};
  for (const bool ascending : {false, true}) {
    compute(ascending, results[ascending]);
  }
  if (is_pattern && results[0] != results[1]) {
    std::fputs("the order of the threads changes the result\n", stderr);
    std::exit(3);
  }
  return results[0];
}

std::FILE* calls;
std::FILE* results;

void read(void* to, size_t size) {
  if (size > 0 && std::fread(to, 1, size, calls) != size) {
    std::fputs("the file of calls ends too early\n", stderr);
    std::exit(2);
  }
}
void write(const void* from, size_t size) {
  if (size > 0 && std::fwrite(from, 1, size, results) != size) {
    std::perror("results");
    std::exit(2);
  }
}
int64_t number() {
  int64_t x;
  read(&x, sizeof x);
  return x;
}

struct Tensor {
  Bytes memory;
  TensorView view;
};
Tensor tensor(int64_t element_size) {
  Tensor x{Bytes(number()), {}};
  const int64_t offset = number();
  for (int64_t& stride : x.view.stride) {
    stride = number();
  }
  read(x.memory.data(), x.memory.size());
  x.view.data = x.memory.data() + offset * element_size;
  return x;
}
Bytes array() {
  Bytes x(number());
  read(x.data(), x.size());
  return x;
}
template <typename T>
const T* as(const Bytes& x) {
  return reinterpret_cast<const T*>(x.data());
}

void set_pattern(Pattern& p, const Bytes& pointers, const Bytes& rows) {
  p.nnz = static_cast<int32_t>(rows.size() / sizeof(int32_t));
  p.pointers = as<int32_t>(pointers);
  p.rows = as<int32_t>(rows);
}

int64_t size_of(Element e) {
  return e == Element::f64 ? 8 : e == Element::f32 ? 4 : 2;
}

constexpr int64_t kProcessors = 132;  // those of an H200

bool same(const Variant& a, const Variant& b) {
  return a.source == b.source && a.reach == b.reach && a.outputs == b.outputs;
}

// The one that would be launched, then all others that can compute the problem.
std::vector<Variant> variants(const Problem& problem) {
  std::vector<Variant> all = {kTiled, kDirect};
  for (const int reach : kReaches) {
    for (const int outputs : {kWide, kNarrow}) {
      if (!(problem.wgrad && outputs == kNarrow)) {
        all.push_back({Source::registers, reach, outputs, kRegisterRows});
      }
    }
  }
  const Variant chosen = choose(problem, kProcessors);
  std::erase_if(all, [&](const Variant& v) { return !can_run(problem, v) || same(v, chosen); });
  all.insert(all.begin(), chosen);
  return all;
}

void write_variants(const std::vector<Variant>& all) {
  const int64_t n = static_cast<int64_t>(all.size());
  write(&n, sizeof n);
  for (const Variant& v : all) {
    const int64_t numbers[3] = {static_cast<int64_t>(v.source), v.reach, v.outputs};
    write(numbers, sizeof numbers);
  }
}

void correlate_on_host(const Correlation& p, const Variant& v, bool ascending) {
  const Launch launch = launch_of({p.pattern, p.window, p.in.element, false}, v);
  with_correlate(v, p.in.element, [&](auto instance) {
    using I = decltype(instance);
    run<typename I::T>(launch, ascending, [&](const HostBlock& block, typename I::T* shared) {
      correlate<typename I::Inputs, I::kRows>(p, launch.cut, block, shared);
    });
  });
}

void wgrad_on_host(WeightGradient p, const Variant& v, bool ascending, Bytes& out) {
  const Launch launch = launch_of({p.pattern, p.window, p.in.element, true}, v);
  if (launch.parts == 0) {
    return out.assign(out.size(), '\0');
  }
  with_wgrad(v, p.in.element, [&](auto instance) {
    using I = decltype(instance);
    using T = typename I::T;
    std::vector<T> partial(launch.parts * p.pattern.nnz, T(NAN));
    p.chunks = launch.parts;
    p.partial = partial.data();
    run<T>(launch, ascending, [&](const HostBlock& block, T* shared) {
      wgrad<typename I::Inputs, I::kRows>(p, launch.cut, block, shared);
    });
    for (int32_t e = 0; e < p.pattern.nnz; ++e) {
      add_chunks(partial.data(), p.chunks, p.pattern.nnz, out.data(), p.in.element, e);
    }
  });
}

void fprop_call(const Geometry& g, Element element, int64_t batch, int64_t length, bool relu) {
  const Tensor x = tensor(size_of(element));
  const Bytes pointers = array(), rows = array(), weights = array(), init = array();
  Correlation p = fprop_problem(g, element, batch, length);
  set_pattern(p.pattern, pointers, rows);
  p.in.view = x.view;
  p.weights = weights.data();
  p.init = init.empty() ? nullptr : init.data();
  p.relu = relu;
  const auto all = variants({p.pattern, p.window, element, false});
  write_variants(all);
  for (const Variant& v : all) {
    const int64_t size = batch * g.out_channels * p.out_length * size_of(element);
    const Bytes out = computed(size, [&](bool ascending, Bytes& to) {
      p.out = {to.data(), {g.out_channels * p.out_length, p.out_length, 1}};
      correlate_on_host(p, v, ascending);
    });
    write(out.data(), out.size());
  }
}

void dgrad_call(const Geometry& g, Element element, int64_t batch, int64_t length) {
  const Tensor grad = tensor(size_of(element));
  const Bytes pointers = array(), rows = array(), weights = array();
  const bool folds = g.mode != PaddingMode::zeros && g.left + g.right > 0;
  const int64_t series = batch * g.in_channels();
  // The first phase has the longest window: what can run it can run all.
  Correlation first = dgrad_problem(g, element, batch, length, 0, folds);
  set_pattern(first.pattern, pointers, rows);
  const auto all = variants({first.pattern, first.window, element, false});
  write_variants(all);
  for (const Variant& v : all) {
    const int64_t size = series * length * size_of(element);
    const Bytes out = computed(size, [&](bool ascending, Bytes& to) {
      Bytes fold(folds ? series * (g.left + g.right) * size_of(element) : 0, '\xff');
      for (int64_t phase = 0; phase < g.stride; ++phase) {
        Correlation p = dgrad_problem(g, element, batch, length, phase, folds);
        set_pattern(p.pattern, pointers, rows);
        p.pattern.pointers += phase * g.in_channels() * p.pattern.row_channels;
        p.in.view = grad.view;
        p.weights = weights.data();
        p.out = {to.data(), {g.in_channels() * length, length, 1}};
        p.fold = fold.data();
        if (p.window.count > 0) {
          correlate_on_host(p, v, ascending);
        }
      }
      if (folds) {
        const Fold p{fold.data(), to.data(), series, length, g.left, g.right, g.mode};
        for (int64_t i = 0; i < series * length; ++i) {
          element == Element::f64 ? add_fold<double>(p, i) : add_fold<float>(p, i);
        }
      }
    });
    write(out.data(), out.size());
  }
}

void wgrad_call(const Geometry& g, Element element, int64_t batch, int64_t length) {
  const Tensor grad = tensor(size_of(element)), x = tensor(size_of(element));
  const Bytes pointers = array(), rows = array();
  WeightGradient p = wgrad_problem(g, element, batch, length);
  set_pattern(p.pattern, pointers, rows);
  p.in.view = x.view;
  p.grad = grad.view;
  const auto all = variants({p.pattern, p.window, element, true});
  write_variants(all);
  for (const Variant& v : all) {
    const Bytes out = computed(p.pattern.nnz * size_of(element), [&](bool ascending, Bytes& to) {
      wgrad_on_host(p, v, ascending, to);
    });
    write(out.data(), out.size());
  }
}

// Only names what would be launched for so many active weights.
void choose_call(int64_t computation, const Geometry& g, Element e, int64_t batch, int64_t length) {
  const Correlation forward = fprop_problem(g, e, batch, length);
  Correlation p = computation == 1 ? dgrad_problem(g, e, batch, length, 0, false) : forward;
  p.pattern.nnz = static_cast<int32_t>(number());
  write_variants({choose({p.pattern, p.window, e, computation == 2}, kProcessors)});
}

}  // namespace
}  // namespace sparseconv::cuda

int main(int n_arguments, char** arguments) {
  using namespace sparseconv;
  using namespace sparseconv::cuda;
  if (n_arguments != 3) {
    std::fprintf(stderr, "usage: %s calls results\n", arguments[0]);
    return 2;
  }
  calls = std::fopen(arguments[1], "rb");
  results = std::fopen(arguments[2], "wb");
  if (calls == nullptr || results == nullptr) {
    std::perror("calls or results");
    return 2;
  }
  int64_t computation;
  while (std::fread(&computation, sizeof computation, 1, calls) == 1) {
    const Element element = static_cast<Element>(number());
    const int64_t batch = number(), length = number(), relu = number();
    is_pattern = number() != 0;
    Geometry g;
    for (int64_t* field : {&g.out_channels, &g.row_channels, &g.kernel_size, &g.stride, &g.left,
                           &g.right, &g.dilation, &g.groups}) {
      *field = number();
    }
    g.mode = static_cast<PaddingMode>(number());
    if (computation == 0) {
      fprop_call(g, element, batch, length, relu != 0);
    } else if (computation == 1) {
      dgrad_call(g, element, batch, length);
    } else if (computation == 2) {
      wgrad_call(g, element, batch, length);
    } else {
      choose_call(computation - 3, g, element, batch, length);
    }
  }
  return std::fclose(results) == 0 ? 0 : 2;
}
