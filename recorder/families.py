"""Families of diffusers pipelines: what the recorder expects of each, a row a family, printed into docs/pipelines.md.

A row says what is expected; wherever data can prove it (values, position ids, shapes of a batch), the code that reads the row does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Final, Literal


@dataclass(frozen=True, kw_only=True)
class Family:
    """Pipelines that are recorded alike. A field that a row leaves out is that of Stable Diffusion."""

    glob: str
    """Over class names of pipelines, and of their denoisers where these share the name."""
    denoiser: str = ""
    """Class name of the denoiser, where the glob does not match it."""
    batch: tuple[str | None, ...] = ("uncond", "cond")
    """Equal parts of a guided batch, in order; None is a part that is neither branch."""
    batch_with_references: tuple[str | None, ...] = ()
    """The same where the call is given `input_images`, if it differs."""
    always_guided: bool = False
    """Whether it guides whatever its scales are."""
    sequential: bool = False
    """Whether each guidance branch is a denoiser pass of its own, cond first."""
    edits: bool = False
    """Whether `image` joins the denoiser's sequence as the reference."""
    inpaints: Literal["", "instead", "behind"] = ""
    """Where `image_reference` joins it, if there is one: in the place of `image`, or behind it."""
    window: Literal["crop", "cells", "whole"] = "crop"
    """What is encoded of a reference: what the image processor's crop leaves, whole cells of tokens, or all of it, stretched."""
    pooled: bool = False
    """Whether the image encoder gives one token for the whole reference."""
    longest_text: int | None = None
    """Text tokens after which those of a reference are appended, which was encoded whole (Redux)."""
    appended_grid: tuple[int, int] | None = None
    """(rows, columns) of an appended reference that has as many tokens."""
    frame_axis: int | None = None
    """Axis of the denoiser's sample that holds frames, where a UNet lays them out as rows of its batch."""
    leading: str = ""
    """Argument whose pictures are encoded as frames before the video's, in the same latent."""
    reference_goes: str = ""
    """What becomes of the reference where attention does not read it."""
    one_adapter: bool = False
    """Whether it takes a single IP-Adapter."""
    encoder_apart: bool = False
    """Whether the image encoder of its IP-Adapters is another model's."""
    inputs: str = ""
    """Name of the function in dryrun/inputs.py that makes the denoiser's inputs; "" if none does, as none need for a plain UNet."""


CHANNELS: Final = "is concatenated to the latent's channels"
# SigLIP so400m, which Redux is published with, has 384 pixels in patches of 14 and no CLS; Flux's own text is never longer than 512.
FLUX: Final = Family(glob="Flux*", sequential=True, longest_text=512, appended_grid=(27, 27), encoder_apart=True, inputs="flux")
FLUX2: Final = Family(glob="Flux2*", sequential=True, edits=True, window="cells", inputs="flux2")
SD3: Final = Family(glob="StableDiffusion3*", one_adapter=True, encoder_apart=True, inputs="sd3")
WAN: Final = Family(glob="Wan*", sequential=True)

FAMILIES: Final = (
    # The first row that matches counts.
    Family(glob="PaintByExamplePipeline", pooled=True),
    Family(glob="StableDiffusionImageVariationPipeline", pooled=True),
    Family(glob="StableDiffusion*InstructPix2PixPipeline", batch=("cond", None, "uncond"), reference_goes=CHANNELS),
    Family(glob="StableDiffusion*UpscalePipeline", reference_goes=CHANNELS),
    Family(glob="LDMSuperResolutionPipeline", reference_goes=CHANNELS),
    Family(glob="Marigold*Pipeline", reference_goes=CHANNELS),
    Family(glob="StableDiffusionDepth2ImgPipeline", reference_goes="becomes the initial latent, and its depth a channel"),
    Family(glob="StableUnCLIPImg2ImgPipeline", reference_goes="is added to the time embedding as a class label"),
    Family(glob="StableVideoDiffusion*", denoiser="UNetSpatioTemporalConditionModel", frame_axis=1, window="whole"),
    Family(glob="AnimateDiff*", denoiser="UNetMotionModel", frame_axis=2),
    Family(glob="LuminaPipeline", denoiser="LuminaNextDiT2DModel", batch=("cond", "uncond")),
    Family(glob="OmniGenPipeline", batch=("cond", "uncond"), batch_with_references=("cond", "uncond", None), always_guided=True),
    replace(FLUX, glob="FluxKontextPipeline", edits=True, inputs="kontext"),
    replace(FLUX, glob="FluxKontext*", edits=True, inpaints="instead", inputs=""),
    replace(FLUX, glob="Flux*ControlNet*", inputs=""),
    replace(FLUX, glob="FluxControl*", reference_goes=CHANNELS),
    replace(FLUX, glob="FluxFillPipeline", reference_goes=CHANNELS),
    replace(FLUX2, glob="Flux2KleinKV*", inputs="flux2_cached"),
    replace(FLUX2, glob="Flux2*Inpaint*", inpaints="behind", inputs=""),
    FLUX2,
    FLUX,
    Family(glob="Chroma*", sequential=True, encoder_apart=True),
    replace(SD3, glob="StableDiffusion3ControlNet*", inputs=""),
    SD3,
    Family(glob="BriaFiboEdit*", edits=True),
    Family(glob="LongCatImageEdit*", sequential=True, edits=True),
    Family(glob="QwenImageEdit*", sequential=True, edits=True, inputs="qwen_edit"),
    Family(glob="Qwen*", sequential=True),
    replace(WAN, glob="Wan*ImageToVideo*", reference_goes="goes into the latent, as channels or as its first frame", inputs="wan"),
    replace(WAN, glob="WanPipeline", inputs="wan"),
    replace(WAN, glob="WanVACE*", leading="reference_images"),
    replace(WAN, glob="WanAnimatePipeline", leading="image"),
    WAN,
    Family(glob="KandinskyV22Controlnet*"),
    Family(glob="KandinskyV22*", inputs="kandinsky"),
    Family(glob="PixArt*", inputs="pixart"),
)

INPUT_GOES: Final = (
    # (glob over pipelines of any family, what becomes of their `image`, which is no reference)
    ("*Inpaint*", "is the picture that is painted into: it is mixed into the latent, or concatenated to its channels"),
    ("*Img2Img*", "becomes the initial latent"),
    ("*ControlNet*", "is added to the denoiser's features"),
    ("*Adapter*", "is added to the denoiser's features"),
)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """An IP-Adapter's projection, which makes tokens of what the image encoder gives."""

    first: str = ""
    """Path of its first linear layer, which is as wide as what it is given; "" if a dry run does not know it."""
    sequence: bool = False
    """Whether it is given all of the encoder's tokens, not one vector."""
    placeless: bool = True
    """Whether its tokens are no patches, whatever their number is."""


PROJECTIONS: Final = {
    # By class name.
    "ImageProjection": Projection(first="image_embeds"),
    "IPAdapterFullImageProjection": Projection(first="ff.net.0.proj", sequence=True, placeless=False),
    "IPAdapterPlusImageProjection": Projection(first="proj_in", sequence=True),
    "IPAdapterFaceIDImageProjection": Projection(first="ff.net.0.proj"),
    "IPAdapterFaceIDPlusImageProjection": Projection(),
}
DEFAULT: Final = Family(glob="*")
"""Of pipelines that nobody named."""


def family_of(model: object) -> Family:
    """The row of a pipeline or a denoiser, by the names of its class and its bases."""
    return _find_family(model if isinstance(model, type) else type(model))


@cache
def _find_family(cls: type) -> Family:
    rows = (row for name in _names(cls) for row in FAMILIES if fnmatchcase(name, row.glob) or name == row.denoiser)
    return next(rows, DEFAULT)


def input_goes(pipeline: object) -> str:
    """What becomes of a pipeline's `image` that is no reference; "" if nobody knows."""
    return next((where for name in _names(type(pipeline)) for glob, where in INPUT_GOES if fnmatchcase(name, glob)), "")


def _names(cls: type) -> Iterator[str]:
    """Names of a class and its bases, nearest first; mixins are shared by families."""
    return (base.__name__ for base in cls.__mro__ if not base.__name__.endswith("Mixin"))
