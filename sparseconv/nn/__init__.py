"""torch.nn for sparse convolutions: the layer, its state, and what stands around it."""
