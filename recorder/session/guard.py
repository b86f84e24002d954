"""What surrounds a run while it is recorded: signals, compiled code, a progress bar, and what is said when it ends."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ...schema.errors import NoSpace
from ...schema.messages import option
from ...schema.trace import TraceRecord
from .run import Run


def uncompiled(denoisers: Iterable[nn.Module]) -> AbstractContextManager[Any]:
    """Run compiled denoisers eagerly: compiled code would be traced anew with the hooks in it."""
    modules = [module for denoiser in denoisers for module in denoiser.modules()]
    compiled = any(hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None for module in modules)
    if not compiled or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


@contextmanager
def terminated() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, unless it is handled already."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def progress_bar(path: Path, wanted: bool, model: Any) -> Iterator[Callable[[int, int], None]]:
    """One bar on stderr if that is a terminal, a pipeline's own being quiet meanwhile; yields what takes evaluations kept and planned."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda kept, planned: None
        return
    own = getattr(model, "_progress_bar_config", None)
    with tqdm(desc=f"recording {path.name}", unit="step", file=sys.stderr) as bar:

        def show(kept: int, planned: int) -> None:
            bar.total = planned or None
            bar.update(kept - bar.n)

        try:
            if hasattr(model, "progress_bar"):
                model._progress_bar_config = {**(own or {}), "disable": True}
            yield show
        finally:
            if own is not None:
                model._progress_bar_config = own
            elif hasattr(model, "_progress_bar_config"):
                del model._progress_bar_config


def interrupt(run: Run, path: Path, error: BaseException) -> None:
    """Keep what was committed, and tell how to open it."""
    writer = run.writer
    if writer is None:
        return
    # What the operating system said of a full disk, not our own sentence about what is kept.
    what = str(error.__cause__ if isinstance(error, NoSpace) else error).strip().splitlines()
    reason = f"{type(error).__name__}{': ' + what[0] if what else ''} after {run.kept} recorded evaluations"
    writer.interrupt(reason, cut=not run.labels.planned)
    if writer.committed and not isinstance(error, NoSpace):
        of = f" of {writer.trace.steps}" if run.labels.planned else ""
        steps = f"{writer.committed}{of} steps are recorded and readable"
        error.add_note(f"{steps}: `i2am info {path} --partial`, or open_trace({str(path)!r}, partial=True)")


def warn_of_losses(trace: TraceRecord, path: Path, stacklevel: int) -> None:
    """Say where float16 was too coarse; the trace says so too."""
    if lossy := [layer.column_mass_lost for layer in trace.layers if layer.lossy]:
        warnings.warn(
            f"float16 lost up to {max(lossy):.0%} of one token's column of G in {len(lossy)} of {len(trace.layers)} layers of "
            f"{path}: R2G maps of these layers are approximate; {option('encoding', 'auto')} or factors keeps them exact",
            stacklevel=stacklevel + 1,
        )
