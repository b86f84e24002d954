"""Families of diffusers pipelines: what the recorder knows of each by its class name."""

from typing import Final

EDITS: Final = ("FluxKontext*", "Flux2*", "QwenImageEdit*")
"""Globs over pipelines whose `image` joins the denoiser's sequence as the reference."""
