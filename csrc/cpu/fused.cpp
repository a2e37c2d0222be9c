#include "fused.h"

#include "layout.h"

namespace sparseconv {

int64_t scratch_bytes(const Pointwise& p) {
  return (p.depth + p.rows) * 2 * kRowBytes;
}

int64_t scratch_bytes(const PointwiseGradient& p) {
  return kPointDepth * (ceil_div(p.rows, 8) * kRowBytes + 2 * kRowBytes + kRowBytes);
}

int64_t scratch_bytes(const BatchNormRelu& p) {
  return channel_block(p.batch, p.length, 1) * channel_samples(p.batch, p.length) * 8;
}

int64_t scratch_bytes(const BatchNormReluGradient& p) {
  return 2 * channel_block(p.batch, p.length, 2) * channel_samples(p.batch, p.length) * 8;
}

int64_t scratch_bytes(const Pool& p) {
  return (p.length + p.bins) * kRowBytes;
}

}  // namespace sparseconv
