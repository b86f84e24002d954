"""Whether the Hugging Face hub answers, asked once and briefly before anything is loaded. Needs no torch."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Final

from ...schema.errors import InvalidInput
from .spec import Spec

PATIENCE: Final = 4.0
"""Seconds; the hub's own client would try for a minute."""
INDEX: Final = "model_index.json"


def reachable(spec: Spec) -> Spec:
    """The spec as it can be loaded now: from the cache alone where the hub does not answer.

    Raises   InvalidInput if it does not, and something is not in the cache
    """
    from huggingface_hub import constants, try_to_load_from_cache

    wanted = [(spec.source, INDEX), *((one.source, f"{one.subfolder}/{one.weight_name}".lstrip("/")) for one in spec.adapters)]
    remote = [(source, name) for source, name in wanted if not Path(source).exists()]
    if not remote or spec.arguments.get("local_files_only") or constants.HF_HUB_OFFLINE or not (why := _silence(constants.ENDPOINT)):
        return spec
    for source, name in remote:
        revision = spec.arguments.get("revision") if name == INDEX else None
        if not isinstance(try_to_load_from_cache(source, name, revision=revision), str):
            raise InvalidInput(
                f"the hub at {constants.ENDPOINT} cannot be reached ({why}), and {source} is not in the cache of what was loaded from it; "
                f"connect and try again, or name a folder of this machine as from_pretrained in {spec.path.name}"
            )
    return dataclasses.replace(spec, arguments={**spec.arguments, "local_files_only": True})


def _silence(endpoint: str) -> str:
    """Why an address does not answer; empty if it does, with whatever."""
    heard: list[str] = []

    def ask() -> None:
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

        try:
            get_session().head(endpoint, timeout=PATIENCE)
            heard.append("")
        except Exception as error:  # of whichever HTTP library this release of the hub's client uses
            heard.append((str(error).splitlines() or [""])[0] or type(error).__name__)

    # In a thread, since looking up a name has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return heard[0] if heard else f"no answer within {PATIENCE:g} s"
