"""What the keys of a call stand for, and which of its queries are places of the generated image."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ...schema.trace import Role, TokenGroup
from ..capture.call import Call
from ..capture.modules import denoisers
from ..capture.projections import UNKNOWN
from ..families import DEFAULT, PROJECTIONS, Family, family_of
from .grids import Canvas, Part, Places

IMAGE_ALONE: Final = "image_proj"
"""What a UNet calls the projection of its context where it is made of an image's embedding alone (Kandinsky 2.2)."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a pipeline's cross-attention reads, as far as the pipeline itself tells."""

    role: Role
    """Of the keys that are no adapter's."""
    patches: tuple[int, int] | None
    """Grid of the image encoder's patches."""
    references: tuple[str, ...]
    """Stored reference images, in order."""
    adapters: tuple[str, ...]
    """Class names of the IP-Adapters' projections."""
    family: Family = DEFAULT
    """What is expected of the pipeline."""
    appended: bool = False
    """Whether a reference is known to stand behind the text."""

    @classmethod
    def of(cls, pipeline: Any, references: Sequence[str] = (), appended: bool = False) -> Context:
        """Read off a pipeline; `references` are the names of the images it is given."""
        holders = [getattr(root, "encoder_hid_proj", None) for root in denoisers(pipeline).values()]
        names = [type(layer).__name__ for holder in holders for layer in getattr(holder, "image_projection_layers", ())]
        return cls(context_role(pipeline), _patches(pipeline), tuple(references), tuple(names), family_of(pipeline), appended)

    def image(self, name: str) -> str | None:
        """The stored image of a reference, which bears its name; None if there is none."""
        return name if name in self.references else None


def context_role(pipeline: Any) -> Role:
    """Text if the pipeline is built around a text encoder, else the reference that an image encoder reads."""
    if any(getattr(getattr(root, "config", None), "encoder_hid_dim_type", None) == IMAGE_ALONE for root in denoisers(pipeline).values()):
        return "reference"
    parts = set(inspect.signature(type(pipeline).__init__).parameters)
    inputs = getattr(getattr(pipeline, "blocks", None), "inputs", ())  # of a modular pipeline, whose call takes anything
    names = {*inspect.signature(type(pipeline).__call__).parameters, *(getattr(one, "name", None) for one in inputs)}
    return "text" if parts & {"text_encoder", "tokenizer"} or names & {"prompt", "prompt_embeds"} else "reference"


def _patches(pipeline: Any) -> tuple[int, int] | None:
    config = getattr(getattr(pipeline, "image_encoder", None), "config", None)
    config = getattr(config, "vision_config", config)
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    size = getattr(pipeline, "reference_size", size)  # an encoder that takes any size is told by its pipeline
    if size is None or patch is None:
        return None
    (height, width), (rows, columns) = (tuple(v) if isinstance(v, (list, tuple)) else (v, v) for v in (size, patch))
    return (height // rows, width // columns)


def is_appended(family: Family, arguments: dict[str, Any], told: bool) -> bool:
    """Whether a reference stands behind the text that a call is given: the caller says so, or there is no text before it, only zeros."""
    embeds, longest = arguments.get("prompt_embeds"), family.longest_text
    if longest is None or not isinstance(embeds, Tensor) or embeds.shape[1] <= longest:
        return False
    return told or not bool(embeds[:, :longest].any())


def adapter_images(kwargs: dict[str, Any]) -> tuple[int, ...]:
    """How many references each IP-Adapter reads, from a denoiser's arguments."""
    embeds = (kwargs.get("added_cond_kwargs") or {}).get("image_embeds")
    embeds = embeds if isinstance(embeds, (list, tuple)) else [embeds]
    return tuple(int(e.shape[1]) if e.ndim > 2 else 1 for e in embeds if isinstance(e, Tensor))


@dataclass(frozen=True, slots=True)
class Scene:
    """What a pass through a denoiser is about, as its arguments tell."""

    images: tuple[int, ...] = ()
    """References each IP-Adapter reads."""
    separate: bool = False
    """Whether they have calls of their own."""
    canvas: Canvas = ()
    """Images in the denoiser's own sequence."""
    text: int = 0
    """Text tokens that are given beside it."""
    keeps_keys: bool = False
    """Whether the references' keys are made in one pass and used again in later ones."""
    referenced: bool = False
    """Whether other rows of the batch have references in their sequence, if not this one."""
    frames: int = 0
    """Frames that stand in the rows of the denoiser's batch."""
    leading: Canvas = ()
    """What the denoiser puts before the text that it is given."""
    further: tuple[int, ...] = ()
    """Tokens of further texts that it is given."""

    @property
    def context(self) -> int:
        """Tokens of the text and of what the denoiser puts before it."""
        return self.text + sum(part.tokens for part in self.leading) if self.text else 0


def row_scenes(scene: Scene, canvases: Sequence[Canvas]) -> tuple[Scene, ...]:
    """The scene of each row, where rows have sequences of their own."""
    referenced = any(part.role == "reference" for canvas in canvases for part in canvas)
    return tuple(replace(scene, canvas=canvas, referenced=referenced) for canvas in canvases)


def token_groups(call: Call, context: Context, scene: Scene = Scene()) -> tuple[TokenGroup, ...]:
    """What the keys of a call are, in order, all of them.

    Raises   UnsupportedModel for a projection, or a sequence, that is not known
    """
    names = [name for name, _ in call.segments]
    groups: list[TokenGroup] = []
    start = 0
    for name, count in call.segments:
        stop = start + count
        if name.startswith("to_v_ip"):
            groups += _adapter_groups(name, call.repeat, start, stop, context, scene)
        elif name == "to_v" and call.joined:
            groups += _joined_groups(call, start, stop, context)
        elif name == "to_v" and call.own:
            groups += _sequence_groups(call, start, stop, context, scene)
        elif name == "add_v_proj" and len(names) == 1:
            groups += _patch_groups(start, stop, context)
        elif name in ("to_v", "add_v_proj"):
            groups += _context_groups(start, stop, context, scene)
        elif name == UNKNOWN and scene.keeps_keys:
            groups += _kept_groups(call, start, stop, context, scene)
        else:
            raise _unknown_keys(call, name)
        start = stop
    return tuple(groups)


def _unknown_keys(call: Call, name: str) -> UnsupportedModel:
    made = f"keys made by {name} are not known yet"
    if name == UNKNOWN:
        made = (
            "the values of an attention call come from none of its projections, so its keys cannot be told apart "
            "(a cache of keys, or a processor that changes its values, or attends from each head by itself)"
        )
    return UnsupportedModel(f"{call.path}: {made}; leave the module out through {option('layers')}")


def _kept_groups(call: Call, start: int, stop: int, context: Context, scene: Scene) -> Iterator[TokenGroup]:
    """Keys of which some were kept from an earlier pass, laid out as they were then; none for references among themselves."""
    references = sum(part.tokens for part in scene.canvas if part.role == "reference")
    if stop - start != references:
        yield from _sequence_groups(call, start, stop, context, scene)


def _context_groups(start: int, stop: int, context: Context, scene: Scene) -> list[TokenGroup]:
    """Keys made from what the pipeline conditions on: text, an image, or text with an image before or behind it."""
    only = context.references[0] if len(context.references) == 1 else None
    if scene.leading and stop - start == scene.context:
        groups = []
        for part in scene.leading:
            groups.append(TokenGroup(part.name, part.role, start, start + part.tokens, image=only if part.role == "reference" else None))
            start += part.tokens
        return [*groups, TokenGroup("text", "text", start, stop)]
    if context.role != "text":
        return [replace(group, image=only) for group in _encoded_groups(["reference"], start, stop, context)]
    given = (scene.text, *scene.further)
    if scene.text and stop - start not in (*given, sum(given)):
        raise UnsupportedModel(
            f"the denoiser is given {' and '.join(map(str, given))} tokens of text, and its attention reads {stop - start} beside the "
            f"image, so it is not known what the others are; leave the modules out through {option('layers')}"
        )
    longest, grid = context.family.longest_text, context.family.appended_grid
    if longest is None or stop - start <= longest:
        return [TokenGroup("text", "text", start, stop)]
    if not context.appended:
        raise UnsupportedModel(
            f"the denoiser is given {stop - start} tokens of text, more than the {longest} that its encoders make, and nothing tells "
            f"whether a reference is behind them (Redux); give its picture: {option('reference_image')}, or at most {longest} tokens"
        )
    split = start + longest
    grid = grid if grid is not None and grid[0] * grid[1] == stop - split else None
    return [
        TokenGroup("text", "text", start, split),
        TokenGroup("reference", "reference", split, stop, grid=grid, image=None if context.family.edits else only),
    ]


def _adapter_groups(name: str, repeat: int, start: int, stop: int, context: Context, scene: Scene) -> Iterator[TokenGroup]:
    adapter = int(name.partition(".")[2] or 0)
    labels = adapter_labels(adapter, context, scene)
    labels = [labels[repeat]] if scene.separate else labels
    projection = PROJECTIONS.get(context.adapters[adapter]) if adapter < len(context.adapters) else None
    placeless = projection is not None and projection.placeless
    return _encoded_groups(labels, start, stop, replace(context, patches=None) if placeless else context)


def adapter_labels(adapter: int, context: Context, scene: Scene) -> list[str]:
    """Names of the references that one IP-Adapter reads, in order."""
    counts = list(scene.images) or [1] * max(1, len(context.adapters), adapter + 1)
    first = sum(counts[:adapter])
    return ["reference"] if sum(counts) == 1 else [f"reference_{first + i}" for i in range(counts[adapter])]


def resampler_groups(call: Call, label: str, context: Context) -> tuple[TokenGroup, ...]:
    """Keys of a resampler: what the encoder gave of one reference, then the tokens that it is being squeezed into."""
    latents, count = call.query.shape[2], call.key.shape[2]
    return (*_encoded_groups([label], 0, count - latents, context), TokenGroup("latents", "self", count - latents, count))


def _patch_groups(start: int, stop: int, context: Context) -> Iterator[TokenGroup]:
    """Image keys of one encoder, one image after another: first frame, or first and last."""
    each = 1 + context.patches[0] * context.patches[1] if context.patches is not None else stop - start
    count = max(1, (stop - start) // each) if (stop - start) % each == 0 else 1
    return _encoded_groups(_numbered(count), start, stop, context)


def _sequence_groups(call: Call, start: int, stop: int, context: Context, scene: Scene) -> Iterator[TokenGroup]:
    """Keys made from the denoiser's own sequence: the image being made, references beside it, text before it if one stream holds all."""
    canvas = _canvas(call, scene)
    count, images = stop - start, sum(part.tokens for part in canvas)
    if scene.canvas and count != images and count in (scene.text, scene.context):
        return  # text among itself
    if scene.canvas and scene.text and count in (scene.text + images, scene.context + images):
        yield from _context_groups(start, stop - images, context, scene)
        start = stop - images
    elif count != images:
        parts = " + ".join(f"{part.role} {part.grid[0]} x {part.grid[1]}" for part in canvas) or "no image"
        raise UnsupportedModel(
            f"{call.path} has {count} keys in one sequence, but the denoiser was given {parts} and {scene.text} text tokens, so it is not "
            f"known which is which; leave the module out through {option('layers')}"
        )
    names = [part.name or part.role for part in canvas]
    for i, part in enumerate(canvas):
        name = names[i] if names.count(names[i]) == 1 else f"{names[i]}_{names[:i].count(names[i])}"
        # A group has rows and columns only: text has no place in them, nor have the keys of a video.
        grid = None if part.role == "text" or part.frames else part.grid
        yield TokenGroup(name, part.role, start, start + part.tokens, grid=grid, image=context.image(name))
        start += part.tokens


def _canvas(call: Call, scene: Scene) -> Canvas:
    return scene.canvas or (() if call.grid is None else (Part("self", call.grid, frames=call.frames),))


def _joined_groups(call: Call, start: int, stop: int, context: Context) -> Iterator[TokenGroup]:
    """The image's own keys, then those of references that the same layer made at the same size."""
    each = call.query.shape[2]
    if (stop - start) % each:
        raise UnsupportedModel(
            f"{call.path} was given {stop - start} keys in the place of its own {each}, not a whole number of references of the same size; "
            f"leave the module out through {option('layers')}"
        )
    yield TokenGroup("self", "self", start, start + each, grid=call.grid)
    for i, name in enumerate(_numbered((stop - start) // each - 1), 1):
        yield TokenGroup(name, "reference", start + i * each, start + (i + 1) * each, grid=call.grid, image=context.image(name))


def _numbered(count: int) -> list[str]:
    return ["reference"] if count == 1 else [f"reference_{i}" for i in range(count)]


def _encoded_groups(names: Sequence[str], start: int, stop: int, context: Context) -> Iterator[TokenGroup]:
    """Tokens of references, as many for each; they have places only if they are as many as the encoder's patches, with CLS or without."""
    each, patches = (stop - start) // len(names), context.patches
    specials = 0 if patches is None else each - patches[0] * patches[1]
    if specials not in (0, 1):
        specials, patches = 0, None
    for i, name in enumerate(names):
        yield TokenGroup(name, "reference", start + i * each, start + (i + 1) * each, specials, patches, context.image(name))


def generated_queries(call: Call, groups: Sequence[TokenGroup], scene: Scene) -> tuple[slice, Places | None]:
    """Which queries of a call are places of the generated image, and their frames, rows and columns; None if they are none.

    Queries run over a call's own keys in the same order, with or without the text, with or without the references.
    """
    positions, canvas = call.query.shape[2], _canvas(call, scene)
    own = [part for part in canvas if part.role == "self"]
    if len(own) != 1:
        return slice(0, positions), call.grid
    size, grid = own[0].tokens, own[0].places
    before = sum(part.tokens for part in canvas[: canvas.index(own[0])])
    images = sum(part.tokens for part in canvas)
    joint = sum(count for name, count in call.segments if not name.startswith("to_v_ip"))
    start = next((group.start for group in groups if group.role == "self"), None)
    outside = joint - images
    found = {size: 0, images: before}
    if start is not None and outside >= 0:
        text_first = outside if start >= outside else 0
        found = {size + outside: text_first, joint: start, **found}
    if positions not in found:
        return slice(0, positions), None
    return slice(found[positions], found[positions] + size), grid


def keep_groups(groups: Sequence[TokenGroup], keys: str, referenced: bool = False) -> tuple[TokenGroup, ...]:
    """The groups of a call that are stored: those of the wanted role.

    `auto` keeps separate calls whole, and of a softmax that is shared with the image's own tokens the reference, or the text
    where there is none, not even in other rows (`referenced`).
    """
    roles = {group.role for group in groups}
    wanted: set[str] = {"auto": {"text", "reference"}, "all": {"text", "reference", "self"}}.get(keys, {keys})
    if keys == "auto" and "self" in roles:
        wanted = {"reference"} if referenced or "reference" in roles else {"text"}
    return tuple(group for group in groups if group.role in wanted)


def columns_of(groups: Sequence[TokenGroup]) -> tuple[slice, ...]:
    """The stretches of the key axis that groups cover, neighbours joined."""
    columns: list[slice] = []
    for group in groups:
        if columns and columns[-1].stop == group.start:
            columns[-1] = slice(columns[-1].start, group.stop)
        else:
            columns.append(slice(group.start, group.stop))
    return tuple(columns)


def moved_together(groups: Sequence[TokenGroup]) -> tuple[TokenGroup, ...]:
    """Groups renumbered for a key axis that holds only them."""
    start, moved = 0, []
    for group in groups:
        moved.append(replace(group, start=start, stop=start + group.tokens))
        start += group.tokens
    return tuple(moved)
