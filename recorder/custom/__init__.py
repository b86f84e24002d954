"""The paper's custom try-on model at its published size, with random weights where none are given.

Hands on `build_custom` and `CustomTryOnPipeline`. No other part of i2am imports it, and it records nothing by itself.
"""

from .pipeline import CustomTryOnPipeline as CustomTryOnPipeline
from .pipeline import build_custom as build_custom
