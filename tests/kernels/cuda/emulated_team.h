// A GPU for tests: blocks whose threads are stackful coroutines, and whose barriers are theirs.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "cuda/kernels.cuh"

namespace sparseconv::cuda {

inline void require(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();  // an exception cannot leave a coroutine
  }
}

// The threads of a block take turns: each runs until it waits for others.
class Team {
 public:
  static constexpr int kWarps = warps_of(kLarge), kThreads = kWarps * kLanes;  // at most
  int threads = kThreads;
  struct Barrier {
    int arrived = 0, passed = 0;
  };
  Barrier block, warps[kWarps];
  bool late = false;
  uint32_t bits[kWarps][kLanes];
  struct Copy {
    void* to;
    const void* from;
    int bytes;
  };
  std::vector<Copy> copies[kThreads];  // on their way

  // Calls body(thread) on every thread. They take turns in ascending or in descending order: what
  // a kernel computes must not depend on it.
  void run(bool ascending, std::function<void(int)> body) {
    body_ = std::move(body);
    step_ = ascending ? 1 : threads - 1;
    running_ = threads;
    for (int i = threads - 1; i >= 0; --i) {
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
      present_ = (present_ + step_) % threads;
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
  int32_t index() const { return static_cast<int32_t>(index_); }
  int thread() const { return thread_; }
  int warp() const { return thread_ / kLanes; }
  int lane() const { return thread_ % kLanes; }
  void sync() const { team_.wait(team_.block, team_.threads); }
  void sync_warp() const { team_.wait(team_.warps[warp()], kLanes); }
  uint32_t uniform(uint32_t x) const {
    team_.bits[warp()][lane()] = x;
    sync_warp();
    for (const uint32_t bits : team_.bits[warp()]) {
      require(bits == x, "the lanes of a warp have different bits");
    }
    sync_warp();
    return x;
  }
  int count(uint32_t bits) const { return std::popcount(bits); }
  void fetch(float* to, const float* from) const {
    require(reinterpret_cast<uintptr_t>(from) % 16 == 0, "16 bytes are read at once");
    std::copy(from, from + 4, to);
  }
  // As late as a GPU may do it, or at once: results must not depend on that.
  template <int kBytes>
  void copy(void* to, const void* from) const {
    for (const void* place : {static_cast<const void*>(to), from}) {
      require(reinterpret_cast<uintptr_t>(place) % kBytes == 0, "copies are aligned");
    }
    team_.copies[thread_].push_back({to, from, kBytes});
    if (!team_.late) {
      wait();
    }
  }
  void commit() const {}
  void wait() const {
    for (const auto& [to, from, bytes] : team_.copies[thread_]) {
      std::memcpy(to, from, bytes);
    }
    team_.copies[thread_].clear();
  }

 private:
  Team& team_;
  int thread_;
  int64_t index_;
};

// Calls kernel(block, shared) on every thread of every block, as a GPU would. Results must not
// depend on the order, which EMULATED_DESCENDING in the environment reverses.
template <typename Kernel>
void run(const Cut& cut, Kernel kernel) {
  static Team team;
  const char* descending = std::getenv("EMULATED_DESCENDING");
  const bool ascending = descending == nullptr || *descending == '\0';
  team.late = ascending;
  team.threads = warps_of(cut.positions) * kLanes;
  for (int64_t i = 0; i < cut.blocks; ++i) {
    const int64_t index = ascending ? i : cut.blocks - 1 - i;
    // Fresh memory for each block, and no value that would pass for a result.
    std::vector<float> shared(shared_bytes(cut.positions) / sizeof(float), NAN);
    team.run(ascending, [&](int thread) { kernel(HostBlock(team, thread, index), shared.data()); });
  }
}

}  // namespace sparseconv::cuda
