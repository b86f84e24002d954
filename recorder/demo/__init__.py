"""A small try-on diffusion model with known ground truth: synthetic pairs, pipeline, weights and the command `i2am demo`.

Hands on the pairs and the pipeline. `examples/train_demo` trains it; no other part of i2am imports it.
"""

# Loaded on first use, as `__init__.pyi` says: pairs need numpy alone, the pipeline needs torch.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
