// Every kernel, in an order in which each finds what it uses. Included once per instruction set,
// inside its namespace and target region, after its vec_*.h.

// clang-format off
#include "numbers.inl"
#include "lanes.inl"
#include "padding.inl"
#include "packing.inl"
#include "lane_rows.inl"
#include "convert.inl"
#include "schedule.inl"
#include "point_tile.inl"
#include "correlate.inl"
#include "wgrad.inl"
#include "pointwise.inl"
#include "batch_norm_relu.inl"
#include "max_pool.inl"
#include "activations.inl"
#include "series.inl"
#include "rocket.inl"
#include "minirocket.inl"
#include "peak.inl"
#include "draws.inl"
#include "table.inl"
