"""Record the attention of a diffusers pipeline, or of any torch sampler, to a trace. Needs the extra `record`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .session.recording import record as record
    from .session.recording import recording as recording

__all__ = ["record", "recording"]


def __getattr__(name: str) -> Any:
    # torch is loaded on first use, so that `i2am --help` and the writer's tests need none.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .session import recording as session

    return getattr(session, name)
