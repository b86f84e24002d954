"""Several processes on one batch, as torchrun and `accelerate launch` start them: who takes what, and one report at the end."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from ...schema.errors import InvalidInput

PATIENCE: Final = timedelta(days=30)
"""Ranks wait for the slowest: a launcher would kill it as soon as another had ended with an error."""


@dataclass(frozen=True, slots=True)
class Place:
    """This process among those of one launch."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Rank on this machine, hence the number of its GPU."""


def find_place() -> Place:
    """The place that the launcher gave this process, from RANK, WORLD_SIZE and LOCAL_RANK.

    Raises   InvalidInput if they contradict each other
    """
    given = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))}
    numbers = [int(value) if value.isdigit() else -1 for value in given.values()]
    if min(numbers) < 0 or numbers[0] >= numbers[1]:
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        raise InvalidInput(f"the environment says {said}; RANK should count from 0 and stay below WORLD_SIZE, or both be unset")
    return Place(*numbers)


def gather(place: Place, rows: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The rows of all ranks, by rank, once all are in; None where the launcher gave no place to meet."""
    if place.world == 1:
        return rows
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        return None
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", place.rank, place.world, timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    store = PrefixStore(f"i2am/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    store.set(f"report/{place.rank}", json.dumps(rows))
    everyone = [row for rank in range(place.world) for row in json.loads(store.get(f"report/{rank}"))]
    store.set(f"read/{place.rank}", "1")
    if place.rank == 0:  # the store may live in this process
        store.wait([f"read/{rank}" for rank in range(place.world)])
    return everyone
