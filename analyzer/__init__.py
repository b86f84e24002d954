"""Answer questions of a trace. Needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attribution import g2r as g2r
    from .attribution import r2g as r2g
    from .attribution import sram as sram
    from .boxes import box_iou as box_iou
    from .boxes import find_boxes as find_boxes
    from .comparison import compare as compare
    from .dataset import evaluate as evaluate
    from .headfile import load_heads as load_heads
    from .headfile import save_heads as save_heads
    from .headtruth import head_truth as head_truth
    from .judgement import METRICS as METRICS
    from .judgement import judge as judge
    from .metrics import imacs as imacs
    from .metrics import normalize as normalize
    from .metrics import threshold as threshold
    from .metrics import upsample as upsample
    from .overlap import iou as iou
    from .overlap import miou as miou
    from .pointing import looks as looks
    from .pointing import pck as pck
    from .ranking import rank_heads as rank_heads
    from .ranking import select_heads as select_heads
    from .reader import Trace as Trace
    from .reader import open_trace as open_trace
    from .recipes import Recipe as Recipe
    from .recipes import recipe as recipe
    from .relevance import heads as heads
    from .resampler import carry as carry
    from .selective import selective_iou as selective_iou
    from .spoken import words as words
    from .tokens import token_map as token_map
    from .vocabulary import concept_words as concept_words
    from .vocabulary import concepts as concepts

# Loaded on first use: dask and xarray take seconds, and `i2am --help` needs neither.
_HOME = {
    "Recipe": "recipes",
    "Trace": "reader",
    "open_trace": "reader",
    "recipe": "recipes",
    "r2g": "attribution",
    "g2r": "attribution",
    "sram": "attribution",
    "compare": "comparison",
    "evaluate": "dataset",
    "box_iou": "boxes",
    "find_boxes": "boxes",
    "METRICS": "judgement",
    "judge": "judgement",
    "carry": "resampler",
    "imacs": "metrics",
    "normalize": "metrics",
    "threshold": "metrics",
    "token_map": "tokens",
    "words": "spoken",
    "upsample": "metrics",
    "iou": "overlap",
    "miou": "overlap",
    "looks": "pointing",
    "pck": "pointing",
    "concepts": "vocabulary",
    "concept_words": "vocabulary",
    "heads": "relevance",
    "load_heads": "headfile",
    "save_heads": "headfile",
    "head_truth": "headtruth",
    "selective_iou": "selective",
    "rank_heads": "ranking",
    "select_heads": "ranking",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
