"""The paper's custom try-on model at its published size, with random weights where none are given.

Hands on `build_custom` and `CustomTryOnPipeline`. Stands alone: no other part of i2am imports it, and it records nothing.
"""

from .pipeline import CustomTryOnPipeline as CustomTryOnPipeline
from .pipeline import build_custom as build_custom
