// Runs the CUDA kernels on the CPU, every instance that can compute a call, so that sanitizers see
// what they do: a block is a team of threads, its barriers are theirs. Reads the calls of
// tests/kernels/cuda/test_cuda_index.py from one file and writes the results to another.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda_team.h"

namespace sparseconv::cuda {
namespace {

using Bytes = std::vector<char>;  // exactly as long as a tensor's memory: one byte more is an error

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
      correlate_on_host(p, launch_of({p.pattern, p.window, element, false}, v), ascending);
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
        p.pattern.pointers += phase * g.in_channels() * p.pattern.channels_per_group;
        p.in.view = grad.view;
        p.weights = weights.data();
        p.out = {to.data(), {g.in_channels() * length, length, 1}};
        p.fold = fold.data();
        if (p.window.count > 0) {
          correlate_on_host(p, launch_of({p.pattern, p.window, element, false}, v), ascending);
        }
      }
      if (folds) {
        fold_on_host({fold.data(), to.data(), series, length, g.left, g.right, g.mode}, element);
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
      const Launch launch = launch_of({p.pattern, p.window, element, true}, v);
      if (launch.parts == 0) {
        return std::fill(to.begin(), to.end(), '\0');
      }
      Bytes partial(launch.parts * p.pattern.nnz * (element == Element::f64 ? 8 : 4), '\xff');
      p.chunks = launch.parts;
      p.partial = partial.data();
      wgrad_on_host(p, launch, ascending);
      add_chunks_on_host(partial.data(), p.chunks, p.pattern.nnz, to.data(), element);
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
    for (int64_t* field : {&g.out_channels, &g.channels_per_group, &g.kernel_size, &g.stride,
                           &g.left, &g.right, &g.dilation, &g.groups}) {
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
