// What an op does when autograd meets it alone, in a graph that was exported or traced. Gradients
// are made around the ops, in sparseconv/functional/conv.py: here there are none, and backward and
// forward mode raise instead of being wrong.

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

TORCH_LIBRARY_IMPL(sparseconv, Autograd, m) {
  for (const char* name :
       {"fprop", "dgrad", "wgrad", "triton_fprop", "triton_dgrad", "triton_wgrad"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
