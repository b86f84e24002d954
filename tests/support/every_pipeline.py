"""Every pipeline class that diffusers exports, made of tiny random components: a kit of parts for each family, arguments by name.

pipeline, call = build("FluxImg2ImgPipeline")
"""

from __future__ import annotations

import inspect
import warnings
from fnmatch import fnmatchcase
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import every_editors
    import every_kits
    import every_others
    import every_transformers
    import every_videos

from every_kits import Kit
from pipelines_transformers import quiet

from pipelines import Built, generator, picture, square_mask

KITS: tuple[Kit, ...] = (*every_transformers.KITS, *every_videos.KITS, *every_editors.KITS, *every_others.KITS, *every_kits.KITS)
"""The first whose glob matches counts."""
NO_CLASS = ("Output", "Blocks", "Config", "Onnx", "Modular", "AutoPipeline")
"""In names of what is no diffusers pipeline class: outputs, blocks, factories, and modular pipelines, which are recorded as models."""
ABSENT: tuple[tuple[str, str], ...] = (
    # (glob over classes that are not run, what they would need, or why they cannot)
    ("Kolors*", "it needs the package sentencepiece"),
    ("ConsisID*", "it needs the package opencv"),
    ("AudioDiffusion*", "it needs the package librosa"),
    ("SpectrogramDiffusion*", "it needs the package note_seq"),
    ("Cosmos*", "it needs the packages torchvision and cosmos_guardrail"),
    ("StableAudio3*", "it makes sound; a tiny audio VAE, duration embedder and text encoder"),
    ("LongCatAudio*", "it makes sound; a tiny audio VAE and text encoder"),
    ("AudioLDM*", "it makes sound; a tiny vocoder and an encoder of sound"),
    ("*MusicLDM*", "it makes sound; a tiny vocoder and an encoder of sound"),
    ("AceStep*", "it makes sound; a tiny audio VAE and condition encoder"),
    ("DanceDiffusion*", "it makes sound, from no condition"),
    ("*LatentUpsample*", "it upsamples latents and has no attention to text"),
    ("LTX2VideoDiffusionDecode*", "it only decodes latents"),
    ("LTX2*", "tiny text connectors, an audio VAE and a vocoder beside its two-stream transformer"),
    ("LTXI2VLong*", "a tiny T5 with its tokenizer, which it runs on segments of the prompt"),
    ("BlipDiffusion*", "a tiny Q-Former with its tokenizer and image processor"),
    ("RFD4*", "it makes proteins, which are no pictures"),
    ("UniDiffuser*", "a tiny GPT-2 decoder beside its joint transformer"),
    ("VQDiffusion*", "a tiny VQ-VAE with learned embeddings of an empty prompt"),
    ("StableUnCLIPPipeline", "a tiny prior with its own text encoder and scheduler, and an image normalizer"),
    ("MotifVideoImage2Video*", "a tiny vision encoder beside its text encoder"),
    ("VisualClozePipeline", "two pipelines in one; its first part is VisualClozeGenerationPipeline"),
    ("StableDiffusionGLIGENTextImage*", "a CLIP processor with an image projection"),
    ("EasyAnimateControl*", "it fails without i2am too: its encode_prompt does not take the text_encoder_index that its call gives"),
    ("Kandinsky6*", "a tiny transformer of two streams, picture and sound"),
    ("I2VGenXL*", "a tiny I2VGenXLUNet, whose heads are fixed by its widths"),
    ("WanAnimate*", "a tiny encoder of motion, and videos of a pose and of a face"),
    ("*HunyuanVideo15ImageToVideo*", "a tiny SigLIP encoder with its processor"),
    ("ZImageOmni*", "a tiny SigLIP 2 encoder with its processor"),
    ("HunyuanImageRefiner*", "a tiny VAE of HunyuanImage"),
    ("*Joy*Plus*", "a tiny Qwen3-VL encoder with its processor"),
    ("BriaFibo2*", "a tiny Qwen3-VL encoder with its processor"),
    ("Ideogram4*", "a tiny language model, which reads prompt and picture as one sequence"),
    ("Helios*", "a tiny text encoder and histories of a video"),
    ("SanaWM*", "a tiny text encoder and paths of a camera"),
)


def exported() -> list[str]:
    """Names of all pipeline classes, without importing them."""
    names = (name for name in dir(diffusers) if "Pipeline" in name and name != "DiffusionPipeline")
    return [name for name in names if not any(word in name for word in NO_CLASS)]


def kit_of(name: str) -> Kit | None:
    """The kit that a class is made from; None if there is none."""
    return None if absence(name) else next((kit for kit in KITS if fnmatchcase(name, kit.glob)), None)


def absence(name: str) -> str:
    """What a class that is not run would need; "" for those that are."""
    return next((why for glob, why in ABSENT if fnmatchcase(name, glob)), "")


def usual(parameters: set[str]) -> dict[str, Any]:
    """Arguments by the names of a call's parameters; fresh ones each time."""
    steps = 3 if "strength" in parameters else 2
    frames = [picture(20 + i) for i in range(5)]
    return {
        "image": picture(1),
        "mask_image": square_mask(),
        "control_image": picture(5),
        "video": frames,
        "mask": [square_mask()] * 5,
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "strength": 0.7,
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "true_cfg_scale": 3.0,
        "pag_scale": 3.0,
        "output_type": "np",
        "generator": generator(),
    }


def build(name: str) -> Built:
    """A pipeline of a class, and a function that makes its arguments."""
    cls, kit = getattr(diffusers, name), kit_of(name)
    assert kit is not None
    if kit.parts is None:
        return cls.__new__(cls), dict
    parameters = inspect.signature(cls.__init__).parameters
    parts = kit.parts(name)
    needed = {k: None for k, p in parameters.items() if k not in ("self", "kwargs") and p.default is p.empty}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = quiet(cls(**{**needed, **{k: part for k, part in parts.items() if k in parameters}}))
        kit.finish(pipeline)
    takes = set(inspect.signature(cls.__call__).parameters)

    def call() -> dict[str, Any]:
        given = {**usual(takes), **kit.given(name)}
        return {k: value for k, value in given.items() if k in takes and value is not LEFT_OUT}

    return pipeline, call


LEFT_OUT = every_kits.LEFT_OUT
