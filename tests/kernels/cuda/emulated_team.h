// A GPU for tests: blocks whose threads are stackful coroutines, and whose barriers are theirs.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda/correlate.cuh"
#include "cuda/wgrad.cuh"

namespace sparseconv::cuda {

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

// Calls kernel(block, shared) on every thread of every block, as a GPU would. Results must not
// depend on the order, which EMULATED_DESCENDING in the environment reverses.
template <typename T, typename Kernel>
void run(const Launch& launch, Kernel kernel) {
  static Team team;
  const char* descending = std::getenv("EMULATED_DESCENDING");
  const bool ascending = descending == nullptr || *descending == '\0';
  // Static and dynamic together; with a byte more a launch would fail, since none asks for more.
  if (launch.shared_bytes + sizeof(Team::weights) > 48 * 1024) {
    throw std::runtime_error("a block has 48 KB of shared memory");
  }
  for (int64_t i = 0; i < launch.blocks; ++i) {
    const int64_t index = ascending ? i : launch.blocks - 1 - i;
    // Fresh memory for each block, exactly as long as asked for, and no value that would pass
    // for a result.
    std::vector<T> shared(launch.shared_bytes / sizeof(T), T(NAN));
    team.run(ascending, [&](int thread) { kernel(HostBlock(team, thread, index), shared.data()); });
  }
}

inline void correlate_on_host(const Correlation& p, const Launch& launch) {
  with_correlate(launch.variant, p.in.element, [&](auto instance) {
    using I = decltype(instance);
    run<typename I::T>(launch, [&](const HostBlock& block, typename I::T* shared) {
      correlate_block<typename I::Inputs, I::kRows>(p, launch.tiling, block, shared);
    });
  });
}

inline void fold_on_host(const Fold& p, Element element) {
  for (int64_t i = 0; i < p.series * p.length; ++i) {
    element == Element::f64 ? add_fold<double>(p, i) : add_fold<float>(p, i);
  }
}

inline void wgrad_on_host(const WeightGradient& p, const Launch& launch) {
  with_wgrad(launch.variant, p.in.element, [&](auto instance) {
    using I = decltype(instance);
    run<typename I::T>(launch, [&](const HostBlock& block, typename I::T* shared) {
      wgrad_block<typename I::Inputs, I::kRows>(p, launch.tiling, block, shared);
    });
  });
}

inline void add_chunks_on_host(const void* partial,
                               int64_t chunks,
                               int64_t nnz,
                               void* out,
                               Element element) {
  for (int64_t e = 0; e < nnz; ++e) {
    if (element == Element::f64) {
      add_chunks(static_cast<const double*>(partial), chunks, nnz, out, element, e);
    } else {
      add_chunks(static_cast<const float*>(partial), chunks, nnz, out, element, e);
    }
  }
}

}  // namespace sparseconv::cuda
