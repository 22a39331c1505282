"""Gradients of T tasks into one: what Ortho-LoRA and its relatives do between the backward pass and the optimizer."""
