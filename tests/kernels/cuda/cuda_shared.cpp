// The most shared memory that any launch of each kernel asks for, over launches of every instance
// that can compute a problem, chosen by itself or forced, in a wide range of shapes. Prints a line
// for each instance: "launches bytes name", and the shape of the largest.

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

#include "cuda/dispatch.h"

namespace sparseconv::cuda {
namespace {

struct Most {
  int64_t launches = 0, bytes = -1;
  std::string shape;
};
std::map<std::string, Most> found;

std::string name_of(const Variant& v, const Problem& p) {
  const std::string kernel = p.wgrad ? "wgrad" : "correlate";
  if (v.source == Source::registers) {
    return kernel + " registers " + std::to_string(v.reach) + " " + std::to_string(v.outputs);
  }
  return kernel + (v.source == Source::tiled ? " tiled" : " direct") +
         (p.element == Element::f64 ? " double" : " float");
}

void look(const Problem& p, const Variant& v, const Geometry& g, int64_t length) {
  if (can_run(p, v)) {
    const int64_t bytes = launch_of(p, v).shared_bytes;
    Most& most = found[name_of(v, p)];
    ++most.launches;
    if (bytes > most.bytes) {
      char shape[160];
      std::snprintf(shape, sizeof shape, "N=%d C=%d K=%d stride=%d dilation=%d L=%d",
                    static_cast<int>(p.window.batch),
                    static_cast<int>(p.pattern.channels_per_group), static_cast<int>(g.kernel_size),
                    static_cast<int>(g.stride), static_cast<int>(g.dilation),
                    static_cast<int>(length));
      most.bytes = bytes;
      most.shape = shape;
    }
  }
}

void every_instance(const Problem& p, const Geometry& g, int64_t length) {
  look(p, kDirect, g, length);
  look(p, kTiled, g, length);
  for (const int reach : kReaches) {
    look(p, {Source::registers, reach, kWide, kRegisterRows}, g, length);
    if (!p.wgrad) {
      look(p, {Source::registers, reach, kNarrow, kRegisterRows}, g, length);
    }
  }
}

void every_computation(const Geometry& g, Element element, int64_t batch, int64_t length) {
  const Correlation forward = fprop_problem(g, element, batch, length);
  for (const bool wgrad : {false, true}) {
    every_instance({forward.pattern, forward.window, element, wgrad}, g, length);
  }
  for (int64_t phase = 0; phase < g.stride; ++phase) {
    const Correlation p = dgrad_problem(g, element, batch, length, phase, false);
    if (p.window.count > 0) {
      every_instance({p.pattern, p.window, element, false}, g, length);
    }
  }
}

}  // namespace
}  // namespace sparseconv::cuda

int main() {
  using namespace sparseconv;
  using namespace sparseconv::cuda;
  for (int64_t kernel_size = 1; kernel_size <= 2000; kernel_size += 1 + kernel_size / 12) {
    for (const int64_t channels : {1, 3, 47, 300}) {
      for (const int64_t stride : {1, 2, 3, 7}) {
        for (const int64_t dilation : {1, 2, 8, 40}) {
          for (const int64_t batch : {1, 2, 7, 16, 40}) {
            for (const int64_t length : {1, 30, 150, 537, 2709, 9000}) {
              const Geometry g{channels, channels, kernel_size,       stride, 0, 0,
                               dilation, 1,        PaddingMode::zeros};
              if (length >= g.reach()) {
                every_computation(g, Element::f32, batch, length);
                every_computation(g, Element::f64, batch, length);
              }
            }
          }
        }
      }
    }
  }
  for (const auto& [name, most] : found) {
    std::printf("%lld %lld %s: %s\n", static_cast<long long>(most.launches),
                static_cast<long long>(most.bytes), name.c_str(), most.shape.c_str());
  }
  return 0;
}
