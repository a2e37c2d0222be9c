// The kernels of one instruction set. Evaluated by the compiler only: no code of it may run before
// the CPU was asked.

consteval KernelTable table(const char* name,
                            const BlockKernels* blocks = nullptr,
                            bool fma = true) {
  return {
      name,
      F32::kWidth,
      fma,
      {correlate<F32, float>, correlate<F64, double>, correlate<F32, Bf16>, correlate<F32, Half>},
      {wgrad<F32, float>, wgrad<F64, double>, wgrad<F32, Bf16>, wgrad<F32, Half>},
      {pointwise<F32>, pointwise<F64>},
      {pointwise_gradient<F32>, pointwise_gradient<F64>},
      {batch_norm_relu<F32>, batch_norm_relu<F64>},
      {batch_norm_relu_gradient<F32>, batch_norm_relu_gradient<F64>},
      {max_pool<F32>, max_pool<F64>},
      {activate<F32>, activate<F64>},
      {prelu<F32>, prelu<F64>},
      {convert<F32, true>, convert<F64, true>},
      {convert<F32, false>, convert<F64, false>},
      rocket_features,
      minirocket_features,
      {peak<F32>, peak<F64>},
      draws,
      {dropout<float, float>, dropout<double, double>, dropout<Bf16, float>},
      blocks,
  };
}
