"""Keys of probes: each is encoded as the pipeline encodes what it is given, then pushed through each layer's own key projection.

Encoding happens right after the pipeline's own, with the same arguments but one; projecting happens inside the attention module
that is running, in a batch of the same shape. So a probe that equals the prompt has the prompt's keys, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...schema.errors import InvalidInput, TraceError, UnsupportedModel
from ...schema.messages import option
from ...schema.text import Text
from ...schema.trace import Layer, Role, TokenGroup, TraceRecord
from ..capture.call import Call
from ..capture.modules import attention_modules, denoisers, reads_adapter
from ..capture.wrapping import only_here, replaced
from ..images.pictures import Picture, probe_picture
from ..labels.rows import bind_arguments
from ..plan.options import Probe
from ..text.readings import Stretch, Texts, tensors
from .keys import Projector


@dataclass(frozen=True, slots=True)
class Encoder:
    """A method of a pipeline that encodes what it is conditioned on."""

    method: str
    argument: str
    """What it encodes."""
    role: Role
    adapter: bool = False
    """Whether what it gives goes to IP-Adapters, whose projections lie between."""


ENCODERS: Final = (
    Encoder("encode_prompt", "prompt", "text"),
    Encoder("prepare_ip_adapter_image_embeds", "ip_adapter_image", "reference", adapter=True),
    Encoder("_encode_image", "image", "reference"),
    Encoder("_encode_reference", "example_image", "reference"),
)
ALONE: Final = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
"""Arguments with which a text is encoded by itself."""


@dataclass(slots=True)
class _Encoded:
    """What one method gave: to the pipeline itself, and for each item of each probe."""

    own: list[Tensor]
    items: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)
    projected: bool = False
    """Whether adapters' projections have made tokens of it."""


@contextmanager
def aside() -> Iterator[None]:
    """Compute without a trace of it in random numbers or gradients."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        yield


class Probing:
    """Watches a pipeline encode, and has the same done to the probes.

    Raises   UnsupportedModel if the pipeline encodes nothing of the kind, InvalidInput for what is no picture
    """

    def __init__(self, pipeline: Any, probes: tuple[Probe, ...], texts: Texts) -> None:
        self._pipeline, self._texts = pipeline, texts
        self._probes = [(probe, _encoder(pipeline, probe)) for probe in probes]
        self._encoded: dict[Encoder, _Encoded] = {}
        self._stretches: dict[tuple[str, int], tuple[Stretch, ...]] = {}
        self._denoiser: nn.Module | None = None
        self._context: Tensor | None = None
        self._busy = False
        self.unheard: Callable[[], AbstractContextManager[None]] = nullcontext
        """Keeps what is computed inside from being recorded."""
        self.pictures: list[Picture] = [picture for probe in probes for picture in _pictures(pipeline, probe)]
        """The probes' own, to be kept with the trace."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        with ExitStack() as stack:
            for encoder in dict.fromkeys(encoder for _, encoder in self._probes):
                stack.enter_context(replaced(type(self._pipeline), encoder.method, self._wrapper(encoder)))
                for projection in _adapter_projections(self._pipeline) if encoder.adapter else ():
                    stack.callback(projection.register_forward_hook(only_here(partial(self._project_images, encoder))).remove)
            yield

    def begin(self, denoiser: nn.Module, context: Any) -> None:
        """A denoiser is about to run on `context`."""
        self._denoiser, self._context = denoiser, context if isinstance(context, Tensor) else None

    def keys(self, call: Call, layer: Layer, row: int) -> tuple[tuple[TokenGroup, ...], NDArray[Any] | None]:
        """Keys of the probes that fit a layer's call, of which `row` is conditioned.

        Dims     groups, (head, probe token, channel)
        Raises   UnsupportedModel naming the module and why it cannot make them
        """
        roles, adapter = {group.role for group in layer.groups}, call.projection.startswith("to_v_ip")
        asked = [(probe, encoder) for probe, encoder in self._probes if probe.role in roles and encoder.adapter == adapter]
        groups: list[TokenGroup] = []
        made: list[Tensor] = []
        with self._aside():
            for probe, encoder in asked:
                for label, key in zip(probe.labels(), self._probe_keys(probe, encoder, call, layer, row), strict=True):
                    start = groups[-1].stop if groups else 0
                    groups.append(self._group(probe, label, start, start + key.shape[1], layer))
                    made.append(key)
        return tuple(groups), torch.cat(made, 1).cpu().numpy() if made else None

    def tell(self) -> tuple[Text, ...]:
        """What the probes' tokens say."""
        texts: list[Text] = []
        for probe, _ in self._probes:
            place = 0
            for index in range(len(probe.items)):
                for stretch, first, count in self._cuts(probe, index):
                    texts.append(stretch.text(probe.name, first, count, place))
                    place += count
        return tuple(texts)

    def check(self, trace: TraceRecord) -> None:
        """Raise UnsupportedModel for a probe that no layer of a trace has keys of."""
        made = {group.name for layer in trace.layers for group in layer.probes}
        for probe, _ in self._probes:
            if probe.labels()[0] not in made:
                what = "text" if probe.role == "text" else "a reference"
                raise UnsupportedModel(
                    f"no recorded layer attends to {what}, so none has keys of the probe {probe.name!r}; "
                    f"record such layers ({option('keys')}, {option('layers')}), or leave the probe out"
                )

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Compute without a trace of it: in random numbers, in gradients, in what is recorded."""
        self._busy = True
        try:
            with aside(), self.unheard():
                yield
        finally:
            self._busy = False

    def _wrapper(self, encoder: Encoder) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def encode(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
                output = original(pipeline, *args, **kwargs)
                if pipeline is self._pipeline and not self._busy and encoder not in self._encoded:
                    arguments = bind_arguments(original, pipeline, args, kwargs)
                    with self._aside():
                        self._encode(encoder, lambda changes: original(pipeline, **{**arguments, **changes}), arguments, output)
                return output

            return encode

        return wrap

    def _encode(self, encoder: Encoder, again: Callable[[dict[str, Any]], Any], arguments: dict[str, Any], output: Any) -> None:
        """Encode each item of the probes as the pipeline has just encoded its own."""
        made = self._encoded[encoder] = _Encoded(list(tensors(output)))
        for probe in (probe for probe, one in self._probes if one is encoder):
            for index, item in enumerate(probe.items):
                with self._texts.apart():
                    vectors = self._encode_item(probe, again, _changes(self._pipeline, encoder, item, arguments))
                    if encoder.role == "text":
                        self._stretches[probe.name, index] = self._read(probe, item, vectors[0])
                # Texts may be many: they wait beside the device, and come back one at a time.
                made.items[probe.name, index] = [vectors[0].to("cpu")] if encoder.role == "text" else vectors

    def _encode_item(self, probe: Probe, again: Callable[[dict[str, Any]], Any], changes: dict[str, Any]) -> list[Tensor]:
        try:
            return list(tensors(again(changes)))
        except TraceError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UnsupportedModel(f"{type(self._pipeline).__name__} cannot encode the probe {probe.name!r}: {lines[0]}") from error

    def _read(self, probe: Probe, item: str, vectors: Tensor) -> tuple[Stretch, ...]:
        stretches = self._texts.find(vectors[-1])
        if not stretches and not probe.whole:
            raise UnsupportedModel(
                f"{type(self._pipeline).__name__} does not show which tokens of the probe text {item!r} are padding; give it by itself, "
                "not in a list, to keep all its tokens"
            )
        return stretches

    def _project_images(self, encoder: Encoder, module: nn.Module, args: Any, output: Any) -> None:
        """Tokens of the probes' pictures, made where the run's own are made."""
        encoded = self._encoded.get(encoder)
        if self._busy or encoded is None or encoded.projected:
            return
        encoded.projected = True
        with self._aside():
            encoded.items = {name: list(tensors(module(vectors))) for name, vectors in encoded.items.items()}

    def _probe_keys(self, probe: Probe, encoder: Encoder, call: Call, layer: Layer, row: int) -> list[Tensor]:
        """Keys of each of a probe's token groups, (head, token, channel)."""
        if (encoded := self._encoded.get(encoder)) is None:
            never = f"{type(self._pipeline).__name__} did not call its {encoder.method}"
            raise UnsupportedModel(f"{never}, so the probe {probe.name!r} cannot be encoded as it would be; leave the probe out")
        module = attention_modules(self._pipeline)[call.path]
        given = None if encoder.adapter else self._context
        if given is None and not encoder.adapter:
            raise UnsupportedModel(
                f"{type(self._denoiser).__name__} is not given one tensor of tokens, so the probe {probe.name!r} has no keys"
            )
        projector = Projector(call, module, layer, given, encoded.own, row)
        adapter = int(call.projection.partition("to_v_ip")[2].lstrip(".") or 0) if encoder.adapter else 0
        keys = [projector.keys(encoded.items[probe.name, i][adapter].flatten(1, -2)) for i in range(len(probe.items))]
        if encoder.role == "text" and not probe.whole:
            cut = [(key, one.start + first, count) for i, key in enumerate(keys) for one, first, count in self._cuts(probe, i)]
            keys = [key[:, start : start + count] for key, start, count in cut]
        return [torch.cat(keys, 1)] if encoder.role == "text" else keys

    def _cuts(self, probe: Probe, index: int) -> list[tuple[Stretch, int, int]]:
        """The tokens of a text that are kept: stretches, the first of each and how many."""
        stretches = self._stretches.get((probe.name, index), ())
        return [(stretch, *((0, stretch.count) if probe.whole else _unpadded(stretch))) for stretch in stretches]

    def _group(self, probe: Probe, label: str, start: int, stop: int, layer: Layer) -> TokenGroup:
        if probe.role == "text":
            return TokenGroup(label, "text", start, stop)
        like = next((group for group in layer.groups if group.role == "reference" and group.tokens == stop - start), None)
        return TokenGroup(label, "reference", start, stop, like.specials if like else 0, like.grid if like else None, f"probe_{label}")


def _encoder(pipeline: Any, probe: Probe) -> Encoder:
    cls = type(pipeline)
    adapters = bool(_adapter_projections(pipeline)) and any(reads_adapter(module) for module in attention_modules(pipeline).values())
    for encoder in ENCODERS:
        if encoder.role == probe.role and hasattr(cls, encoder.method) and (adapters or not encoder.adapter):
            return encoder
    what = "prompts" if probe.role == "text" else "reference images"
    raise UnsupportedModel(f"{cls.__name__} has no way of its own to encode {what}, so the probe {probe.name!r} has no keys; leave it out")


def _adapter_projections(pipeline: Any) -> list[Any]:
    found = [getattr(denoiser, "encoder_hid_proj", None) for denoiser in denoisers(pipeline).values()]
    return [projection for projection in found if hasattr(projection, "image_projection_layers")]


def _changes(pipeline: Any, encoder: Encoder, item: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that differ where an item is encoded in place of the pipeline's own."""
    if encoder.role == "text":
        return text_alone(item, arguments)
    item = _open(item)
    if not encoder.adapter:
        return {encoder.argument: item}
    count = max(len(projection.image_projection_layers) for projection in _adapter_projections(pipeline))
    return {encoder.argument: [item] * count, f"{encoder.argument}_embeds": None}


def text_alone(text: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's method that encodes prompts which differ where it encodes this text, or these, by themselves."""
    others = [name for name in arguments if name.startswith(("prompt", "negative_prompt")) or name.endswith("_embeds")]
    alone = {name: value for name, value in ALONE.items() if name in arguments}
    return {**dict.fromkeys(others), **alone, "prompt": text}


def _unpadded(stretch: Stretch) -> tuple[int, int]:
    """First token and count of what is more than padding."""
    kept = [index for index, more in enumerate(stretch.kept) if more]
    return (kept[0], kept[-1] + 1 - kept[0]) if kept else (0, 0)


def _pictures(pipeline: Any, probe: Probe) -> Iterator[Picture]:
    for label, item in zip(probe.labels(), probe.items, strict=True) if probe.role == "reference" else ():
        if (picture := probe_picture(pipeline, f"probe_{label}", _open(item))) is None:
            raise InvalidInput(
                f"probe {probe.name!r} holds a {type(item).__name__}; it takes texts or images (PIL, arrays, tensors, paths)"
            )
        yield picture


def _open(item: Any) -> Any:
    if not isinstance(item, Path):
        return item
    try:
        with PIL.Image.open(item) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise InvalidInput(f"the probe image {item} cannot be read ({error})") from error
