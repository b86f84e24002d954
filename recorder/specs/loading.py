"""From a spec to a pipeline that can be called: classes, weights, adapters, scheduler, arguments."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import diffusers
import PIL.Image
import torch
import transformers

from ...schema.errors import InvalidInput, TraceError
from ...schema.messages import guess
from ..families import family_of
from .arguments import arguments_of
from .spec import Adapter, Images, Spec, check_keys

RECORDER_IMAGES = ("reference_mask", "reference_image")
"""Images that are the recorder's, not the pipeline's."""

PICKLED = "pickled weights, which can be programs, are loaded only with use_safetensors = false in [pipeline.arguments]"


def load_pipeline(spec: Spec) -> Any:
    """Load the pipeline of a spec with its adapters and scheduler onto its device.

    Raises   InvalidInput; what can be seen without weights is checked before they are read
    """
    cls = find_class(spec.pipeline, "pipeline")
    check_call(spec, cls)
    if spec.scheduler is not None:
        check_scheduler(spec)
    # Where pickled weights may be loaded, safetensors may be as well, which False would forbid.
    arguments = {**spec.arguments, "use_safetensors": None if spec.unpickles else True}
    if "torch_dtype" in arguments:
        arguments["torch_dtype"] = find_dtype(spec)
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
    with explained(f"cannot load {spec.pipeline} from {spec.source}"), _moved_classes(spec, cls), warnings.catch_warnings():
        # Newer releases call torch_dtype dtype, which older ones do not know.
        warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)
        pipeline = cls.from_pretrained(spec.source, **arguments, **dict.fromkeys(spec.without))
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)  # the recording shows its own
    if spec.adapters:
        with explained(f"cannot load the IP-Adapters of {spec.path.name} into {spec.pipeline}"):
            _load_adapters(pipeline, spec)
    if spec.scheduler is not None:
        pipeline.scheduler = make_scheduler(spec, pipeline.scheduler.config)
    with explained(f"cannot move the pipeline to {spec.device or 'the GPU'}"):
        return pipeline.to(spec.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def run_arguments(spec: Spec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the pipeline's call, with the spec's images and seed, and options of `record`, with the recorder's images."""
    images = {name: _open(name, image) for name, image in spec.images.items()}
    options = spec.options | {name: images.pop(name) for name in RECORDER_IMAGES if name in images}
    arguments = spec.call | images
    if isinstance(spec.seed, list):
        arguments["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in spec.seed]
    elif spec.seed is not None:
        arguments["generator"] = torch.Generator("cpu").manual_seed(spec.seed)
    return arguments, options


def find_class(name: str, kind: str) -> Any:
    """A class of diffusers by name, or any other as `module:Class`.

    Raises   InvalidInput with the nearest names
    """
    module_name, _, class_name = name.rpartition(":")
    try:
        module = importlib.import_module(module_name or "diffusers")
        found = getattr(module, class_name, None)
    except Exception as error:  # a module may raise anything when it is imported, and a lazy one when it is asked
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInput(f"{kind} {name!r}: cannot import {module_name or 'it'} ({why}); install it, or correct the name") from error
    if inspect.isclass(found):
        return found
    if module_name:
        raise InvalidInput(f"{kind} {name!r}: {module_name} has no class {class_name}; {guess(class_name, dir(module))}name one it has")
    near = guess(name, [other for other in dir(diffusers) if other.endswith(kind.capitalize())])
    raise InvalidInput(f"diffusers {diffusers.__version__} has no {kind} {name!r}; {near}a class from elsewhere is written module:Class")


def check_call(spec: Spec, cls: Any) -> None:
    """Raise InvalidInput for an argument or an image that the pipeline's call does not take, or one that it needs and is not given."""
    known = arguments_of(cls)
    if not known.any_name:
        check_keys(spec.path.name, "call", spec.call, known.names)
        check_keys(spec.path.name, "images", spec.images, {*known.names, *RECORDER_IMAGES})
    if spec.adapters and not hasattr(cls, "load_ip_adapter"):
        raise InvalidInput(f"{spec.pipeline} takes no IP-Adapters; remove [[adapters]] from {spec.path.name}")
    for adapter in spec.adapters:
        if not (adapter.weight_name.endswith(".safetensors") or spec.unpickles):
            raise InvalidInput(f"[[adapters]] of {spec.path.name}: {adapter.weight_name} is no .safetensors file; {PICKLED}")
    if len(spec.adapters) > 1 and family_of(cls).one_adapter:
        raise InvalidInput(f"{spec.pipeline} takes one IP-Adapter; {spec.path.name} has {len(spec.adapters)} [[adapters]]")
    if twice := sorted(set(spec.call) & set(spec.images)):
        raise InvalidInput(f"{spec.path.name}: {twice[0]} stands both in [call] and in [images]")
    if missing := [name for name in known.needed if name not in {*spec.call, *spec.images}]:
        raise InvalidInput(f"{spec.path.name}: {cls.__name__} needs {missing[0]}; give it in [call], or in [images] if it is an image")


def check_scheduler(spec: Spec) -> Any:
    """The class of the spec's scheduler, whose config knows what the spec changes.

    Raises   InvalidInput
    """
    cls = find_class(spec.scheduler or "", "scheduler")
    check_keys(spec.path.name, "scheduler.config", spec.scheduler_config, list(inspect.signature(cls.__init__).parameters)[1:])
    return cls


def make_scheduler(spec: Spec, config: Any) -> Any:
    """The spec's scheduler, built from another's config and the spec's changes."""
    cls = check_scheduler(spec)
    with explained(f"cannot make the scheduler {spec.scheduler}"):
        return cls.from_config(config, **spec.scheduler_config)


def hub_arguments(spec: Spec) -> dict[str, Any]:
    """Arguments that every loading function of diffusers and transformers takes."""
    return {name: spec.arguments[name] for name in ("revision", "local_files_only") if name in spec.arguments}


def find_dtype(spec: Spec) -> torch.dtype:
    """The dtype that the model is loaded in."""
    name = str(spec.arguments.get("torch_dtype", "float32")).removeprefix("torch.")
    if name not in ("float16", "bfloat16", "float32"):
        raise InvalidInput(f"[pipeline.arguments] of {spec.path.name}: torch_dtype is {name!r}; use float16, bfloat16 or float32")
    return getattr(torch, name)  # type: ignore[no-any-return]


@contextmanager
def explained(what: str, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turn whatever diffusers raises on files, names and values that do not fit into one line."""
    try:
        yield
    except (TraceError, MemoryError):
        raise
    except kinds as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        hint = f"; {PICKLED}" if ".safetensors" in lines[0] else ""
        raise InvalidInput(f"{what}: {lines[0].removesuffix('.')}{hint}") from error


@contextmanager
def _moved_classes(spec: Spec, cls: Any) -> Iterator[None]:
    """Let diffusers find component classes where a saved pipeline says they are.

    It moved whole pipelines (Paint-by-Example to `pipelines.deprecated`), and cannot load what it saved before or since; the
    pipeline's own signature still names their classes.
    """
    parameters = inspect.signature(cls.__init__).parameters
    with ExitStack() as undo:

        def show(place: Any, name: str, value: Any) -> None:
            if not hasattr(place, name):
                setattr(place, name, value)
                undo.callback(delattr, place, name)

        for name, value in cls.load_config(spec.source, **hub_arguments(spec)).items():
            known: Any = getattr(parameters.get(name), "annotation", None)
            if not isinstance(value, (list, tuple)) or getattr(known, "__name__", "") != value[1]:
                continue
            if value[0] == cls.__module__.split(".")[-2]:  # named after the pipeline's folder
                show(diffusers.pipelines, value[0], sys.modules[known.__module__])
            elif value[0] == "diffusers":
                show(diffusers, value[1], known)
                if issubclass(known, transformers.PreTrainedModel):  # diffusers looks for what it is a kind of in the same place
                    show(diffusers, "PreTrainedModel", transformers.PreTrainedModel)
        yield


def encoder_place(adapter: Adapter, cls: Any) -> tuple[str, str] | None:
    """Folder or hub id, and folder in it, of the image encoder that an adapter brings; None if it brings none."""
    folder = adapter.image_encoder_folder
    if folder is None:
        return None
    if "/" in folder:  # a hub id, unless the encoder lies beside the adapter
        return (folder, "") if family_of(cls).encoder_apart else (adapter.source, folder)
    return adapter.source, f"{adapter.subfolder}/{folder}".lstrip("/")


def _load_adapters(pipeline: Any, spec: Spec) -> None:
    adapters, family, place = spec.adapters, family_of(pipeline), encoder_place(spec.adapters[0], type(pipeline))
    options: dict[str, Any] = {"local_files_only": True} if spec.arguments.get("local_files_only") else {}
    if family.one_adapter:  # whose loader wants all of the encoder's path
        options["image_encoder_folder"] = place and "/".join(part for part in place if part)
    elif family.encoder_apart:
        source, folder = place or (None, "")
        options |= {"image_encoder_pretrained_model_name_or_path": source, "image_encoder_subfolder": folder}
    else:
        options["image_encoder_folder"] = adapters[0].image_encoder_folder

    def each(field: str) -> Any:
        values = [getattr(adapter, field) for adapter in adapters]
        return values[0] if family.one_adapter else values

    pipeline.load_ip_adapter(each("source"), subfolder=each("subfolder"), weight_name=each("weight_name"), **options)
    pipeline.set_ip_adapter_scale(each("scale"))


def _open(name: str, image: Images) -> Any:
    if isinstance(image, list):
        return [_open(name, item) for item in image]
    try:
        with PIL.Image.open(image) as picture:
            return picture.convert("L" if "mask" in name else "RGB")
    except OSError as error:
        raise InvalidInput(f"[images]: {name} = {image} is no image that can be read ({error})") from error
