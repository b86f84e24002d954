"""A small try-on diffusion model with known ground truth: its data, its training and its weights."""
