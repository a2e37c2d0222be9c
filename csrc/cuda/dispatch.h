// Which instantiation of a kernel computes a problem, and how it is launched. By shape and by the
// number of multiprocessors; no result of fprop or dgrad depends on it, and none of wgrad on the
// latter.
#pragma once

#include <string_view>

#include "tiling.h"

namespace sparseconv::cuda {

// Where a multiply-add reads its input from: see inputs.cuh.
enum class Source : int { direct, tiled, registers };

struct Variant {
  Source source;
  int reach;    // rows of the window that registers hold; 0 for the other sources
  int outputs;  // per lane: odd, see Tiling
  int rows;     // of the pattern, per warp
};

struct Launch {
  Variant variant;
  Tiling tiling;
  int64_t parts;  // tiles, or wgrad's chunks of tiles
  int64_t blocks;
  int64_t shared_bytes;
};

// Tiled and direct kernels: the more outputs, the fewer loads of weights, and the more idle lanes.
constexpr int kOutputs = 17;
// Register kernels: two rows share a window. The wide ones need 62 sums and up to 69 inputs, which
// leaves registers for three warps on each quarter of an SM; their code is some 40 KB at most. The
// narrow ones serve small problems, where there are few warps and each should be short.
constexpr int kWide = 31;
constexpr int kNarrow = kOutputs;
constexpr int kRegisterRows = 2;
constexpr int kReaches[] = {13, 26, 39};  // the regions of a Dynamic Sparse Network

// When to take registers. Filling a window costs outputs + reach - 1 reads of shared memory per
// channel, and saves `outputs` for each active weight of the rows that share it: where these are
// this many times the cost. And wide ones, where these make so many warps per multiprocessor.
// Estimates: these kernels have never run on a GPU. SPARSECONV_CUDA_KERNEL forces one of them.
constexpr double kRegisterGain = 1.0;
constexpr int64_t kWarpsPerProcessor = 8;
// wgrad's tiles are cut into chunks until there are so many warps. A constant, because the sums
// must not depend on the GPU: 16 warps for each of an H200's 132 multiprocessors.
constexpr int64_t kWgradWarps = 16 * 132;

// wgrad's stage: a warp's own part of shared memory, for 32 weights with a sum per lane. Its rows
// are one word longer, so that reading down a column meets 32 banks, as reading along a row does.
constexpr int kStageRow = kLanes + 1;
constexpr int kWarpStage = kLanes * kStageRow;

constexpr Variant kTiled{Source::tiled, 0, kOutputs, 1};
constexpr Variant kDirect{Source::direct, 0, kOutputs, 1};

// What one launch depends on, and where its kind of kernel keeps what is no tile.
struct Problem {
  const Pattern& pattern;
  const Window& window;
  Element element;
  bool wgrad;

  int64_t bytes() const { return element == Element::f64 ? 8 : 4; }  // of an accumulator
  // A correlation stores through the memory of the tile, when that has done its duty.
  int64_t stage(const Variant& v) const {
    return bytes() * kWarps * (wgrad ? kWarpStage : kLanes * v.outputs);
  }
  // The tile of a register kernel holds the whole reach, also where the window is shorter.
  Tiling tiling(const Variant& v) const {
    Window w = window;
    w.span = w.span < v.reach - 1 ? v.reach - 1 : w.span;
    return make_tiling(w, v.outputs, pattern.channels_per_group, bytes(),
                       kSharedBytes - (wgrad ? stage(v) : 0));
  }
  int64_t row_blocks(const Variant& v) const {
    return RowUnits(pattern, v.rows).group_blocks * pattern.groups;
  }
};

inline bool can_run(const Problem& p, const Variant& v) {
  switch (v.source) {
    case Source::direct:
      return true;
    case Source::tiled:
      return p.tiling(v).channels > 0;
    default:
      return p.element != Element::f64 && p.window.step == 1 && p.window.span < v.reach;
  }
}

inline bool registers_pay(const Pattern& p, const Variant& v) {
  const double loads = static_cast<double>(p.n_rows) * static_cast<double>(p.channels_per_group) *
                       (v.outputs + v.reach - 1);
  return static_cast<double>(p.nnz) * v.outputs * v.rows >= kRegisterGain * loads;
}

// The shortest reach that holds the window.
inline Variant registers(const Problem& p, int outputs) {
  Variant v{Source::registers, 0, p.wgrad ? kWide : outputs, kRegisterRows};
  for (const int reach : kReaches) {
    v.reach = v.reach == 0 && p.window.span < reach ? reach : v.reach;
  }
  return v;
}

// What SPARSECONV_CUDA_KERNEL names; no outputs: it names nothing.
inline Variant named(const Problem& p, std::string_view name) {
  return name == "direct"   ? kDirect
         : name == "tiled"  ? kTiled
         : name == "narrow" ? registers(p, kNarrow)
         : name == "wide"   ? registers(p, kWide)
                            : Variant{};
}

inline Variant choose(const Problem& p, int64_t processors) {
  const Variant wide = registers(p, kWide);
  if (can_run(p, wide)) {
    const bool many =
        p.tiling(wide).tiles * p.row_blocks(wide) * kWarps >= kWarpsPerProcessor * processors;
    const Variant v = many ? wide : registers(p, kNarrow);
    if (registers_pay(p.pattern, v)) {
      return v;
    }
  }
  return can_run(p, kTiled) ? kTiled : kDirect;
}

inline Launch launch_of(const Problem& p, const Variant& v) {
  Launch launch{v, p.tiling(v), 0, 0, 0};
  launch.parts = launch.tiling.tiles;
  if (p.wgrad) {
    const int64_t wanted = ceil_div(kWgradWarps, p.row_blocks(v) * kWarps);
    launch.parts = wanted < launch.parts ? wanted : launch.parts;
  }
  launch.blocks = launch.parts * p.row_blocks(v);
  const int64_t tile = v.source == Source::direct
                           ? 0
                           : p.bytes() * launch.tiling.channel_rows * launch.tiling.channels;
  const int64_t stage = p.stage(v);
  launch.shared_bytes = p.wgrad ? stage + tile : stage > tile ? stage : tile;
  return launch;
}

}  // namespace sparseconv::cuda
