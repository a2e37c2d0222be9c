// What the machine reaches at its best, measured: the roofs that a kernel's speed is compared with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sparseconv {

// A tile of every instruction set's sums, and three rows, divide it: each byte counts.
constexpr int64_t kPeakBlock = 24 * 64;

// Runs one loop on all of torch's threads, with the vectors of the instruction set in use.
//
// what: "registers", a multiply-add per vector of `bytes`, its operands in registers; "loads", the
// same with one aligned load each from a buffer of so many bytes, read again and again, so that
// its size decides which cache it lies in; "triad", a = b + s * c over three arrays that share the
// bytes. `bytes` is a multiple of kPeakBlock; every thread has so many of its own and goes over
// them `passes` times.
//
// Returns the seconds of each of `repeats` runs. Throws std::invalid_argument.
std::vector<double> run_peak(const std::string& what,
                             bool float64,
                             int64_t bytes,
                             int64_t passes,
                             int64_t repeats);

}  // namespace sparseconv
