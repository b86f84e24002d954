"""Maps, metrics and inspection of recorded attention, from a trace alone.

Hands on every public function of the analyzer, loaded on first use; what lies deeper is not public. Never imports torch.
"""

# Loaded on first use, as `__init__.pyi` says: dask and xarray take seconds, and `i2am --help` needs neither.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
