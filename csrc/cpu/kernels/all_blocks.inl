// Every kernel of blocks, in an order in which each finds what it uses. Included once per target,
// inside its namespace, after its tiles_*.h and vectors of pairs.

// clang-format off
#include "padding.inl"
#include "blocks.inl"
#include "block_packing.inl"
#include "block_wgrad.inl"
#include "tile_products.inl"
#include "pair_products.inl"
#include "rows.inl"

template <typename Products>
consteval BlockKernels block_table() {
  return {correlate_blocks<Products>,
          block_wgrad<Products>,
          pack_blocks,
          unpack_sums,
          to_rows,
          from_rows,
          border_sums,
          row_statistics,
          row_sums,
          norm_rows,
          pool_rows};
}
