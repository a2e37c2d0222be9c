// The instantiations that exist, from the numbers of a Variant.
#pragma once

#include "dispatch.h"
#include "inputs.cuh"

namespace sparseconv::cuda {

template <typename InputsOf, int kRowsOf>
struct Instance {
  using Inputs = InputsOf;
  using T = typename Inputs::T;
  static constexpr int kRows = kRowsOf;
};

template <typename F>
void with_simple(Source source, Element element, F f) {
  const bool direct = source == Source::direct;
  if (element == Element::f64) {
    direct ? f(Instance<Direct<double, kOutputs>, 1>()) : f(Instance<Tiled<double, kOutputs>, 1>());
  } else {
    direct ? f(Instance<Direct<float, kOutputs>, 1>()) : f(Instance<Tiled<float, kOutputs>, 1>());
  }
}

template <int kR, typename F>
void with_reach(int reach, F f) {
  switch (reach) {
    case kReaches[0]:
      return f(Instance<Registers<kReaches[0], kR>, kRegisterRows>());
    case kReaches[1]:
      return f(Instance<Registers<kReaches[1], kR>, kRegisterRows>());
    default:
      return f(Instance<Registers<kReaches[2], kR>, kRegisterRows>());
  }
}

}  // namespace sparseconv::cuda
