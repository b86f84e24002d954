"""What a trace has for its maps to be judged by: masks, the truth, tokens with places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import option
from ...schema.trace import Image
from ..aggregation.selection import Select, Selection, choose, has_places
from ..inspection.precision import precision_note
from ..inspection.truth import find_truth
from ..methods.recipes import Recipe
from ..metrics.masks import binarize
from ..trace.images import find_image, load_mask, own_mask, own_reference_mask
from ..trace.reader import Trace

Need: TypeAlias = Literal["mask", "reference_mask", "truth", "places", "image", "tokens"]
"""What a trace must have: a mask, the truth, tokens with a place that the recipe maps, an image and no video, two tokens or more."""
MASKS: Final = ("mask", "reference_mask")


@dataclass(frozen=True, slots=True)
class Grounds:
    """What the maps of a trace can be held against: its own masks unless the caller names others, and its truth."""

    trace: Trace
    select: Select
    row: Recipe
    named: Mapping[str, str | None]
    """Masks that the caller names, by role."""

    @property
    def chosen(self) -> Selection:
        """The calls of R2G.

        Raises   as `choose`
        """
        return choose(self.trace, self.select, recipe=self.row)

    @property
    def places(self) -> bool:
        """Whether there are maps on the reference: the tokens have places, and the recipe maps them."""
        return self.row.g2r != "none" and has_places(self.chosen)

    @property
    def note(self) -> str | None:
        """What the encoding took from R2G, if that is worth a word; maps made of rows of P lose nothing."""
        return precision_note(self.trace, self.chosen.layers) if self.row.r2g == "generated" else None

    def image(self, role: str) -> Image | None:
        """The picture that a mask of this role is of."""
        if role == "mask":
            return find_image(self.trace, f"generated_{self.select.sample}", "generated")
        return find_image(self.trace, self.chosen.groups[0].image, "reference")

    def mask(self, role: str) -> str | None:
        """Name of the mask of a role; None if there is none.

        Raises   UnknownSelection if the trace has several and none is named
        """
        if self.named[role]:
            return self.named[role]
        if role == "mask":
            return own_mask(self.trace, self.select.sample)
        image = self.image(role)
        return own_reference_mask(self.trace, image.name if image else None)

    def load(self, role: str) -> NDArray[np.uint8]:
        """The mask of a role.

        Dims     (row, column), 0 to 255
        Raises   InvalidInput if there is none; as `mask` and `load_mask`
        """
        name = self.mask(role)
        if name is None:
            what = "mask of the generated image" if role == "mask" else "mask of the reference"
            raise InvalidInput(f"{self.trace.path} holds no {what}, which the metric needs; give one with {option(role)}")
        return load_mask(self.trace, name)

    def fits(self, role: str) -> bool:
        """Whether there is a mask of a role that can be used: of its picture's size, neither empty nor full."""
        image = self.image(role)
        try:
            shape = binarize(self.load(role)).shape
        except (InvalidInput, UnknownSelection):
            return False
        return image is None or shape == (image.height, image.width)

    def has(self, need: Need) -> bool:
        """Whether the trace has what a metric needs; a mask need not fit."""
        if need in MASKS:
            return self.mask(need) is not None
        if need == "truth":
            truth = find_truth(self.trace)
            return truth is not None and bool(truth.known.any())
        if need == "tokens":
            return all(group.tokens - group.specials > 1 for group in choose(self.trace, self.select).groups)
        return self.places if need == "places" else not self.trace.latent_frames
