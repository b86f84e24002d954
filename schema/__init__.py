"""The trace format: its records, the plan of its arrays, its codecs and its errors.

Hands on the records, `layout`, the codec pair, and every error that i2am raises on purpose. Imports numpy and the standard library alone.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from .errors import AlreadyExists as AlreadyExists
from .errors import CorruptTrace as CorruptTrace
from .errors import IncompleteTrace as IncompleteTrace
from .errors import InvalidInput as InvalidInput
from .errors import MissingExtra as MissingExtra
from .errors import NoAnswer as NoAnswer
from .errors import NoCluster as NoCluster
from .errors import NoSpace as NoSpace
from .errors import NotATrace as NotATrace
from .errors import TraceError as TraceError
from .errors import UnknownSelection as UnknownSelection
from .errors import UnknownVersion as UnknownVersion
from .errors import UnsupportedModel as UnsupportedModel

if TYPE_CHECKING:
    from .arrays.array import ArrayPlan as ArrayPlan
    from .codec import decode_probability as decode_probability
    from .codec import encode_probability as encode_probability
    from .layout import layout as layout
    from .record import FORMAT_VERSION as FORMAT_VERSION
    from .text import Text as Text
    from .text import Word as Word
    from .trace import Codec as Codec
    from .trace import Image as Image
    from .trace import Layer as Layer
    from .trace import TokenGroup as TokenGroup
    from .trace import TraceRecord as TraceRecord

# Loaded on first use: who needs the errors alone, such as `i2am --help`, need not wait for numpy.
_LATER: Final = {
    **dict.fromkeys(("decode_probability", "encode_probability"), "codec"),
    "ArrayPlan": "arrays.array",
    "layout": "layout",
    "FORMAT_VERSION": "record",
    **dict.fromkeys(("Text", "Word"), "text"),
    **dict.fromkeys(("Codec", "Image", "Layer", "TokenGroup", "TraceRecord"), "trace"),
}


class _Face(ModuleType):
    """This package, in which `layout` is the function: the module of that name, when imported, would take its place."""

    def __getattr__(self, name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_LATER[name]}", __name__), name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.layout if name == "layout" and isinstance(value, ModuleType) else value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_LATER})


sys.modules[__name__].__class__ = _Face
