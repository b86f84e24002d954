"""Record the attention of a diffusers pipeline, or of any torch sampler, to a trace. Needs the extra `record`.

Hands on `record`, `recording`, and `seal` for what was cut short. Never imports dask or xarray: a trace is written here and
read in `i2am.analyzer`.
"""

# Loaded on first use, as `__init__.pyi` says: `i2am --help` and the writer need no torch.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
