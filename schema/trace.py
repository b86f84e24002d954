"""The record of a trace: frozen dataclasses, valid when made, that are stored as JSON in the root attributes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, TypeAlias, cast

from .arrays.sums import KeptSums
from .codec import Codec as Codec
from .errors import CorruptTrace, UnknownVersion
from .messages import plain
from .record import BRANCHES, FORMAT_VERSION, JSON, MAPS_VERSION, NAME, as_json, decode, require
from .text import Text

Softmax: TypeAlias = Literal["generated", "keys"]

Encoding: TypeAlias = Literal["probabilities", "factors", "sums"]
Values: TypeAlias = Literal["none", "norms", "full"]
Role: TypeAlias = Literal["text", "reference", "self"]
ImageRole: TypeAlias = Literal["generated", "reference", "mask", "reference_mask", "input"]
Status: TypeAlias = Literal["recording", "interrupted", "complete"]

ENCODINGS: Final[tuple[Encoding, ...]] = ("probabilities", "factors", "sums")
VALUES: Final[tuple[Values, ...]] = ("none", "norms", "full")
ROLES: Final[tuple[Role, ...]] = ("text", "reference", "self")
IMAGE_ROLES: Final[tuple[ImageRole, ...]] = ("generated", "reference", "mask", "reference_mask", "input")
STATUSES: Final[tuple[Status, ...]] = ("recording", "interrupted", "complete")
FACTOR_DTYPES: Final = ("float16", "float32")
LOSSY: Final = 0.01
"""Share of a token's column from which an encoding's loss is worth a word: the mean over tokens is then off by up to as much."""


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """A named stretch of the key axis: what these tokens stand for and where they lie."""

    name: str
    """Unique in its layer, such as `text`, `reference` or `reference_1`."""
    role: Role
    """`text`, `reference` (image tokens given to the model) or `self` (the generated image's own tokens)."""
    start: int
    """First token, inclusive."""
    stop: int
    """Last token, exclusive."""
    specials: int = 0
    """Leading tokens without a place in the image, such as CLS."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of the tokens after the specials, row-major, y down; None if they have no place."""
    image: str | None = None
    """Name of the image the tokens were made from; the grid covers that image's window."""

    def __post_init__(self) -> None:
        require(bool(NAME.fullmatch(self.name)), f"token group name {self.name!r} is not made of letters, digits, _ . -")
        require(self.role in ROLES, f"token group {self.name} has role {self.role!r}; roles are {', '.join(ROLES)}")
        require(0 <= self.start < self.stop, f"token group {self.name} runs from {self.start} to {self.stop}; it needs 0 <= start < stop")
        count = self.stop - self.start
        require(0 <= self.specials <= count, f"token group {self.name} has {self.specials} specials among {count} tokens")
        if self.grid is not None:
            rows, columns = self.grid
            require(
                rows > 0 and columns > 0 and rows * columns == count - self.specials,
                f"token group {self.name}: grid {rows} x {columns} does not hold its {count - self.specials} spatial tokens",
            )

    @property
    def tokens(self) -> int:
        """How many tokens, specials included."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Layer:
    """One attention call site: the n-th attention call inside one module."""

    path: str
    """Module path from the pipeline, such as `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2`."""
    call: int
    """Ordinal of the call within one run of the module: 0 text keys, 1 the first IP-Adapter, ..."""
    heads: int
    head_dim: int
    scale: float
    """S = scale * (q . k)."""
    grid: tuple[int, int]
    """(rows, columns) of the generated positions, row-major, y down."""
    tokens: int
    """Keys stored."""
    groups: tuple[TokenGroup, ...]
    """What the stored keys are; disjoint, in order, covering all of them."""
    encoding: Encoding = "probabilities"
    dtype: str = "float32"
    """The model's dtype of q and k, such as `bfloat16`."""
    factor_dtype: str = "float32"
    """Stored dtype of q and k when the encoding is `factors`."""
    call_tokens: int = 0
    """Keys in the model's own softmax; more than `tokens` where some keys were not kept. 0 stands for `tokens`.
    Where branches differ in it, as with texts of two lengths, that of the first that was recorded."""
    head_numbers: tuple[int, ...] = ()
    """The model's own numbers, from 0, of the heads on the head axis; empty is all of them."""
    call_heads: int = 0
    """Heads of the model's own call where only those of `head_numbers` were kept. 0 stands for `heads`."""
    frames: int = 0
    """Frames of the generated video; their axis stands before y and x. 0 is one image, which has no such axis."""
    queries: str = ""
    """Name of the token group whose tokens the queries are, of a call that makes tokens of others, such as an IP-Adapter's resampler:
    then `grid` is (1, tokens). Empty where queries are places of the generated image."""
    probes: tuple[TokenGroup, ...] = ()
    """Keys beside the run, made from texts or pictures that it was not given; disjoint, in order, from 0."""
    column_mass_lost: float = 0.0
    """Worst |1 - sum over x| of one token's G column as decoded, over all that was recorded: what the encoding lost or added."""

    values: Values = "none"
    """What is kept of the values: `norms` of what each gives through a head of the output projection, or in `full` themselves and it."""
    value_dim: int = 0
    """Channels of a value, where values are kept in full."""
    output_dim: int = 0
    """Channels of the module's output, where values are kept in full."""
    gain: float = 1.0
    """What the model multiplies what this call gives with before its output projection (an adapter's scale); norms have it in them."""
    sums: KeptSums | None = None
    """What is kept where the encoding is `sums`; else None."""
    concepts: tuple[str, ...] = ()
    """Words that attended to the image beside the run, of which it is kept how well each position agrees with each."""
    residual: bool = False
    """Whether, with values in full, the norm of what the module's output is added to is kept for each position."""

    def __post_init__(self) -> None:
        require(bool(self.path) and self.path.isprintable(), f"a layer needs a module path of plain characters, not {self.path!a}")
        for name in ("heads", "head_dim", "tokens"):
            require(getattr(self, name) > 0, f"layer {self.path}: {name} is {getattr(self, name)}; it must be positive")
        require(self.call >= 0, f"layer {self.path}: call is {self.call}; it must not be negative")
        require(min(self.grid) > 0, f"layer {self.path}: grid {self.grid} must be positive")
        require(self.frames >= 0, f"layer {self.path}: {self.frames} frames; it has some, or 0 for an image")
        flat = not self.is_resampler or self.grid[0] == 1
        require(flat, f"layer {self.path}: {self.queries} tokens on a grid {self.grid}; expected (1, tokens)")
        require(self.encoding in ENCODINGS, f"layer {self.path}: encoding {self.encoding!r}; encodings are {', '.join(ENCODINGS)}")
        known = (self.encoding == "sums") == (self.sums is not None) and max(self.sums.tokens if self.sums else (), default=0) < self.tokens
        require(known, f"layer {self.path}: encoding {self.encoding} of {self.tokens} tokens with sums {self.sums}")
        require(
            self.factor_dtype in FACTOR_DTYPES,
            f"layer {self.path}: factors cannot be {self.factor_dtype}; they are {' or '.join(FACTOR_DTYPES)}",
        )
        require(self.values in VALUES, f"layer {self.path}: values {self.values!r}; they are kept as {', '.join(VALUES)}")
        sizes, full = (self.value_dim, self.output_dim), self.values == "full"
        require(
            (min(sizes) > 0) if full else (sizes == (0, 0) and self.gain == 1 and not self.residual),
            f"layer {self.path}: values {self.values} with channels {sizes}, gain {self.gain} and residual {self.residual}; "
            "only full ones have them, and then channels always",
        )
        require(
            self.call_tokens == 0 or self.call_tokens >= self.tokens,
            f"layer {self.path}: {self.tokens} keys of {self.call_tokens} in the call",
        )
        require(
            all(a < b for a, b in itertools.pairwise((-1, *self.head_numbers, self.call_heads or self.heads)))
            and len(self.head_numbers) == (self.heads if self.call_heads else 0),
            f"layer {self.path}: heads {list(self.head_numbers)} of {self.model_heads} do not name its {self.heads} in order",
        )
        ends = [0, *(g.stop for g in self.groups)]
        covered = [g.start for g in self.groups] == ends[:-1] and ends[-1] == self.tokens
        spans = [(g.name, g.start, g.stop) for g in self.groups]
        require(covered, f"layer {self.path}: token groups {spans} do not cover its {self.tokens} keys in order")
        require(len({g.name for g in self.groups}) == len(self.groups), f"layer {self.path}: two token groups have one name")
        starts = [0, *(g.stop for g in self.probes)][:-1] if self.probes else []
        in_order = [g.start for g in self.probes] == starts and len({g.name for g in self.probes}) == len(self.probes)
        require(in_order, f"layer {self.path}: probes {[(g.name, g.start, g.stop) for g in self.probes]} are not in order, or share a name")

    @property
    def places(self) -> tuple[int, ...]:
        """Lengths of the axes that queries lie on: (rows, columns), frames before them in a video."""
        return (self.frames, *self.grid) if self.frames else self.grid

    @property
    def model_heads(self) -> int:
        """Heads of the model's own call, kept or not."""
        return self.call_heads or self.heads

    @property
    def heads_kept(self) -> tuple[int, ...]:
        """The model's own numbers of the heads on the head axis."""
        return self.head_numbers or tuple(range(self.heads))

    @property
    def head_count(self) -> str:
        """How many heads there are, and of how many where some were not kept, as text."""
        return f"{self.heads} of {self.call_heads}" if self.call_heads > self.heads else str(self.heads)

    @property
    def is_resampler(self) -> bool:
        """Whether the queries are tokens that an adapter makes of others, and no places of the image."""
        return bool(self.queries)

    @property
    def probe_tokens(self) -> int:
        """Keys of all probes."""
        return self.probes[-1].stop if self.probes else 0

    @property
    def name(self) -> str:
        """The path, with `#call` after it for every call but the first."""
        return self.path if self.call == 0 else f"{self.path}#{self.call}"

    @property
    def lossy(self) -> bool:
        """Whether float16 lost so much of a token's column that R2G, which counts every token alike, is approximate."""
        return self.encoding == "probabilities" and not self.is_resampler and self.column_mass_lost > LOSSY

    @property
    def partial_keys(self) -> bool:
        """Whether the model's softmax ran over more keys than are stored."""
        return self.call_tokens > self.tokens


@dataclass(frozen=True, slots=True)
class Image:
    """A picture kept in the trace, with the geometry that ties it to token grids."""

    name: str
    """Unique, such as `generated_0`, `reference`, `mask`."""
    role: ImageRole
    height: int
    width: int
    channels: int
    """3 (RGB) or 1 (mask, 0 or 255)."""
    window: tuple[float, float, float, float] | None = None
    """(top, left, bottom, right) in this image's pixels that token grids cover (a processor may crop); None is all of it."""
    frames: int = 0
    """Frames of a video; 0 is one picture, which has no such axis."""

    def __post_init__(self) -> None:
        require(bool(NAME.fullmatch(self.name)), f"image name {self.name!r} is not made of letters, digits, _ . -")
        require(self.role in IMAGE_ROLES, f"image {self.name} has role {self.role!r}; roles are {', '.join(IMAGE_ROLES)}")
        require(self.height > 0 and self.width > 0, f"image {self.name} is {self.height} x {self.width} pixels")
        require(self.channels in (1, 3), f"image {self.name} has {self.channels} channels; it needs 1 or 3")
        require(self.frames >= 0, f"image {self.name} has {self.frames} frames; it has some, or 0 for one picture")
        top, left, bottom, right = self.window or (0, 0, self.height, self.width)
        require(
            0 <= top < bottom <= self.height and 0 <= left < right <= self.width,
            f"image {self.name} has a window {self.window} that is no part of its {self.height} x {self.width} pixels",
        )


LATER: Final = {"chunk_steps": 1}
"""Fields of the record that came after the first release, and what they say where they are left out."""
LATER_LAYER: Final = {"values": "none", "value_dim": 0, "output_dim": 0, "gain": 1.0, "residual": False, "concepts": [], "sums": None}
"""Those of a layer."""


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """One recording: the record that stands in the root attributes under `i2am`."""

    id: str
    """A UUID, new for each recording."""
    status: Status
    samples: int
    """Generated images in the run."""
    branches: tuple[str, ...]
    """Guidance branches kept, of `cond` and `uncond`, in the order of the branch axis."""
    steps: int
    """Length of the step axis: denoiser evaluations planned while recording, kept once complete."""
    layers: tuple[Layer, ...] = ()
    images: tuple[Image, ...] = ()
    codec: Codec = field(default_factory=Codec)
    latent_grid: tuple[int, int] | None = None
    """(rows, columns) of the latent, the grid that maps are brought to; None takes the largest layer grid."""
    created: str = ""
    """ISO 8601, UTC."""
    reason: str = ""
    """Why a recording was interrupted."""
    model: dict[str, Any] = field(default_factory=dict)
    """Pipeline class, components, their config hashes, device, dtype."""
    sampler: dict[str, Any] = field(default_factory=dict)
    """Scheduler class and config, guidance scale, number of steps."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """Prompt, seed and the other arguments of the call."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Library versions, recorder options, known truth."""
    texts: tuple[Text, ...] = ()
    """What the tokens of text groups and text probes say."""
    version: int = FORMAT_VERSION
    chunk_steps: int = 1
    """Steps that a chunk of attention holds, as far as they fit: 1 as recorded, more in a trace that was packed for sharing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", MAPS_VERSION if self.maps_only else FORMAT_VERSION)
        require(self.chunk_steps > 0, f"chunk_steps {self.chunk_steps}; a chunk holds at least one step")
        require(self.chunk_steps == 1 or self.status == "complete", "only complete traces are packed")
        require(
            self.id.isprintable() and self.created.isprintable(), f"a trace's id and date are plain text, not {self.id!a}, {self.created!a}"
        )
        require(self.status in STATUSES, f"status {self.status!r}; a trace is {', '.join(STATUSES)}")
        require(self.samples > 0 and self.steps >= 0, f"a trace needs samples and steps, got {self.samples} and {self.steps}")
        require(
            len(self.branches) > 0 and len(set(self.branches)) == len(self.branches) and set(self.branches) <= set(BRANCHES),
            f"branches {self.branches}; a trace keeps cond, uncond or both",
        )
        require(self.latent_grid is None or min(self.latent_grid) > 0, f"latent grid {self.latent_grid} must be positive")
        names = [layer.name for layer in self.layers]
        require(len(set(names)) == len(names), "two layers have one path and call")
        require(len({i.name for i in self.images}) == len(self.images), "two images have one name")

    @property
    def maps_only(self) -> bool:
        """Whether layers keep sums in place of attention, so that maps can be had and nothing else."""
        return any(layer.encoding == "sums" for layer in self.layers)

    @property
    def map_grid(self) -> tuple[int, int]:
        """(rows, columns) that maps are brought to: the latent's, or else the largest layer grid."""
        grids = (layer.grid for layer in self.layers if not layer.is_resampler)
        return self.latent_grid or max(grids, key=math.prod, default=(1, 1))

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON; fields that came after the first release are left out where they say nothing."""
        document = cast("dict[str, Any]", as_json(dataclasses.asdict(self)))
        return _told({**document, "layers": [_told(layer, LATER_LAYER) for layer in document["layers"]]}, LATER)

    @classmethod
    def from_json(cls, doc: JSON) -> Self:
        """Build from the JSON under `i2am`.

        Raises   UnknownVersion for another format, CorruptTrace for a record that is not well formed
        """
        version = doc.get("version", FORMAT_VERSION) if isinstance(doc, dict) else FORMAT_VERSION
        if type(version) is not int or not FORMAT_VERSION <= version <= MAPS_VERSION:
            known = f"this release reads versions {FORMAT_VERSION} and {MAPS_VERSION}"
            way = "Open it with the release that wrote it, or upgrade: pip install --upgrade i2am"
            raise UnknownVersion(f"the trace has format version {plain(str(version)[:60])}; {known}. {way}")
        record = decode(cls, doc, "the trace record")
        if record.version != version:
            raise CorruptTrace(f"the trace record says format version {version}, and its layers are of version {record.version}")
        return record


def _told(document: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in later or value != later[name]}
