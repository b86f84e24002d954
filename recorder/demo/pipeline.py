"""The demo pipeline: paint a reference garment onto a masked person, with diffusers parts only.

    from i2am.recorder.demo.pipeline import load_shipped
    pipeline = load_shipped()  # or TryOnPipeline.from_pretrained(folder)
    painted = pipeline(image=person, mask_image=mask, example_image=garment).images[0]

The latent is no autoencoder's: every 4 x 4 block of pixels becomes the channels of one latent cell, times the config's
scaling_factor. The denoiser reads [noisy latent, agnostic latent, mask, coordinates] and attends to the reference tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...schema.errors import InvalidInput
from .encoder import GarmentEncoder, coordinate_features

Image = PIL.Image.Image | NDArray[Any] | Tensor | list[PIL.Image.Image] | list[NDArray[Any]]
OnStepEnd = Callable[["TryOnPipeline", int, int, dict[str, Any]], dict[str, Any]]

WEIGHTS = Path(__file__).parent / "weights"
"""The trained model that comes with i2am."""
COORDINATE_OCTAVES = 2
COORDINATE_CHANNELS = 4 * COORDINATE_OCTAVES


def denoiser_input(latent: Tensor, agnostic: Tensor, mask: Tensor) -> Tensor:
    """Lay beside the noisy latent all that the denoiser knows without the reference.

    Dims     latent, agnostic (image, 3*p*p, y, x), mask (image, p*p, y, x) -> (image, 7*p*p + 8, y, x)
    """
    height, width = latent.shape[-2:]
    where = coordinate_features(height, width, COORDINATE_OCTAVES).to(latent)
    return torch.cat([latent, agnostic, mask, where.expand(len(latent), -1, -1, -1)], dim=1)


class TryOnPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Inpaint a person's torso with the garment of a reference image.

    Source   the custom model of Park et al. 2024 (I2AM) in small: masks and agnostic person concatenated to the
             latent, cross-attention over CLS and all patch tokens of one reference
    """

    model_cpu_offload_seq = "image_encoder->unet"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self, image_encoder: GarmentEncoder, unet: UNet2DConditionModel, scheduler: DDIMScheduler, scaling_factor: float = 0.5
    ) -> None:
        super().__init__()
        self.register_modules(image_encoder=image_encoder, unet=unet, scheduler=scheduler)
        self.register_to_config(scaling_factor=scaling_factor)
        self.block = int(image_encoder.config.patch_size)
        self.size = int(unet.config.sample_size) * self.block
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.block)
        self.mask_processor = VaeImageProcessor(
            vae_scale_factor=self.block, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    def to_latent(self, pixels: Tensor) -> Tensor:
        """Space to depth, scaled.

        Dims     (image, rgb, y, x) in [-1, 1] -> (image, 3*p*p, y/p, x/p)
        """
        return functional.pixel_unshuffle(pixels, self.block) * float(self.config.scaling_factor)

    def to_pixels(self, latent: Tensor) -> Tensor:
        """The inverse of to_latent."""
        return functional.pixel_shuffle(latent / float(self.config.scaling_factor), self.block)

    @torch.no_grad()
    def __call__(
        self,
        image: Image,
        mask_image: Image,
        example_image: Image,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.2,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Paint the garment of example_image where mask_image is white on image; the rest of image is kept as it is.

        Images are PIL, numpy (y, x, rgb) in [0, 1] or torch (rgb, y, x) in [0, 1], or lists of these; other sizes are
        resized to the model's. Guidance above 1 batches [without reference, with reference] into one denoiser call.

        Dims     -> images, one per input and num_images_per_prompt, of the model's size
        Raises   ValueError if height or width is not the model's, or output_type is none of pil, np, pt
        """
        self._check(height, width, output_type)
        visible, hole = self._prepare_person(image, mask_image)
        tokens = self._encode_reference(example_image, len(visible), guidance_scale > 1)
        visible, hole, tokens = (x.repeat_interleave(num_images_per_prompt, 0) for x in (visible, hole, tokens))
        agnostic = self.to_latent(visible).to(self.unet.dtype)
        mask = functional.pixel_unshuffle(hole, self.block).to(self.unet.dtype)

        if latents is None:
            latents = randn_tensor(agnostic.shape, generator=generator, device=agnostic.device, dtype=agnostic.dtype)
        latents = latents.to(agnostic) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps, device=agnostic.device)
        known = inspect.signature(self.scheduler.step).parameters  # schedulers differ in what their step takes
        extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in known}
        with self.progress_bar(total=num_inference_steps) as bar:
            for index, timestep in enumerate(self.scheduler.timesteps):
                predicted = self._predict(latents, timestep, agnostic, mask, tokens, guidance_scale)
                latents = self.scheduler.step(predicted, timestep, latents, **extra).prev_sample
                if callback_on_step_end is not None:
                    given = callback_on_step_end(self, index, int(timestep), {"latents": latents})
                    latents = given.pop("latents", latents)
                bar.update()
        pixels = visible + hole * self.to_pixels(latents.float())
        painted = self.image_processor.postprocess(pixels, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=painted) if return_dict else (painted,)

    def _check(self, height: int | None, width: int | None, output_type: str) -> None:
        for name, value in (("height", height), ("width", width)):
            if value not in (None, self.size):
                raise ValueError(f"{name}: this model paints {self.size} x {self.size} pixels, got {value}")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: expected 'pil', 'np' or 'pt', got {output_type!r}")

    def _prepare_person(self, image: Image, mask_image: Image) -> tuple[Tensor, Tensor]:
        """What stays visible of the person, 0 elsewhere, and the hole to be painted, 1 inside; both in pixels."""
        person = self.image_processor.preprocess(image, self.size, self.size)
        masks = mask_image if isinstance(mask_image, list) else [mask_image]
        # Truth values cannot be resized.
        masks = [mask.astype(np.float32) if isinstance(mask, np.ndarray) else mask for mask in masks]
        hole = self.mask_processor.preprocess(masks, self.size, self.size).to(person)
        return (person * (1 - hole)).to(self._execution_device), hole.to(self._execution_device)

    def _encode_reference(self, example_image: Image, people: int, guided: bool) -> Tensor:
        """Reference tokens, one row per person; with guidance, the rows without a reference come first."""
        pixels = self.image_processor.preprocess(example_image, self.size, self.size)
        pixels = pixels.expand(people, -1, -1, -1).to(self._execution_device, self.image_encoder.dtype)
        tokens: Tensor = self.image_encoder(pixels).last_hidden_state
        return torch.cat([self.image_encoder.unconditional_tokens(people), tokens]) if guided else tokens

    def _predict(self, latents: Tensor, timestep: Tensor, agnostic: Tensor, mask: Tensor, tokens: Tensor, guidance_scale: float) -> Tensor:
        """One denoiser call for all rows, guidance applied."""
        noisy = denoiser_input(self.scheduler.scale_model_input(latents, timestep), agnostic, mask)
        branches = len(tokens) // len(latents)
        predicted: Tensor = self.unet(noisy.repeat(branches, 1, 1, 1), timestep, encoder_hidden_states=tokens).sample
        if branches == 1:
            return predicted
        without, given = predicted.chunk(2)
        return without + guidance_scale * (given - without)


def load_shipped(weights: Path = WEIGHTS) -> TryOnPipeline:
    """The trained pipeline that comes with i2am, in float32 and without progress bars.

    Raises   InvalidInput if the weights are not there
    """
    if not (weights / "model_index.json").is_file():
        raise InvalidInput(f"the demo model's weights are not in {weights}; install i2am from its repository, which ships them")
    logging.disable_progress_bar()
    pipeline: TryOnPipeline = TryOnPipeline.from_pretrained(weights)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
