"""A small try-on diffusion model with known ground truth: its pairs, its pipeline and its weights; examples/train_demo trains it."""
