"""Record the try-on repositories of I2AM's IMACS table from within their own inference loops.

Add two lines to the repository's script, around the call that samples one pair:

    from repositories import recording_of

    with recording_of("stableviton", model, f"stableviton/{name}.zarr", garment=garment, mask=mask, garment_mask=garment_mask) as running:
        samples = sampler.sample(...)
        running.images(generated=decode(samples))

Pictures are of the generated one's size: masks are white where the garment goes, and where it is on its own picture. Published on
VITON-HD at 512 x 384: DCI-VTON IMACS_g .0785; StableVITON IMACS_g .3083, IMACS_r .3388. Commands for the tables: docs/reproduce.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from i2am.recorder import recording

REPOSITORIES: dict[str, dict[str, Any]] = {
    # One CLS token of the garment; guidance in one batch, the unconditional branch first.
    "dci-vton": {"groups": {"*attn2": "reference"}, "order": ("uncond", "cond")},
    # CLS in attn2, the garment encoder's features in nine blocks; the published script runs without guidance.
    "stableviton": {
        "groups": {"*warp_flow_blks*": {"name": "reference", "rows": 1}, "*attn2": {"name": "cls", "role": "reference"}},
        "encoding": "factors",
    },
}
"""What i2am has to be told of each; docs/outside.md has the other repositories."""


@contextmanager
def recording_of(repository: str, model: Any, path: str, *, garment: Any, mask: Any, garment_mask: Any) -> Iterator[Any]:
    """Record what the model of a repository samples within the block; tell it the generated picture before the block ends."""
    with recording(model, path, denoisers={"unet": model.model.diffusion_model}, **REPOSITORIES[repository]) as running:
        running.images(reference=garment, mask=mask, reference_mask=garment_mask)
        yield running
