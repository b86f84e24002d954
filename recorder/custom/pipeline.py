"""The paper's custom model: Stable Diffusion 1.5's U-Net, 12 channels wide, reading every patch token of a large image encoder.

from i2am.recorder.custom import CustomTryOnPipeline, build_custom

pipeline = build_custom()                               # full size, random weights
pipeline = build_custom(unet=my_unet, vae=my_vae)       # yours where you have them
pipeline = CustomTryOnPipeline.from_pretrained(folder)  # a folder written by save_pretrained
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from ...schema.errors import InvalidInput

CONFIGS: Final = Path(__file__).parent / "configs"
"""The published sizes: SD 1.5, DINOv2 giant, 512 x 384 pixels, a reference of 518 x 392 (37 x 28 patches)."""
MEAN: Final = (0.485, 0.456, 0.406)
DEVIATION: Final = (0.229, 0.224, 0.225)
"""Of ImageNet, which the encoder was trained with."""


class CustomTryOnPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Inpaint a person with the garment of a reference; cross-attention reads CLS and all patch tokens of the reference.

    Source   the custom model of Park et al., I2AM, as far as it is published: 12 input channels, tokens of all patches. Which pictures
             fill the channels is not: here the noisy latent, the agnostic person's, and that of a picture of the pose
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        image_encoder: Dinov2Model,
        scheduler: DDIMScheduler,
        image_size: tuple = (512, 384),  # type: ignore[type-arg]  # diffusers reads annotations, and knows plain classes only
        reference_size: tuple = (518, 392),  # type: ignore[type-arg]
    ) -> None:
        super().__init__()
        _check_fit(vae, unet, image_encoder, reference_size)
        self.register_modules(vae=vae, unet=unet, image_encoder=image_encoder, scheduler=scheduler)
        self.register_to_config(image_size=tuple(image_size), reference_size=tuple(reference_size))
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.reference_size = tuple(reference_size)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.reference_processor = VaeImageProcessor(
            do_resize=True, vae_scale_factor=int(image_encoder.config.patch_size), do_normalize=False
        )
        self.mask_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        mask_image: Any,
        example_image: Any = None,
        pose_image: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        reference_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Paint the garment of `example_image` where `mask_image` is white on `image`; without `pose_image` its channels are empty.

        `reference_embeds` are tokens from `encode_reference`, in place of the picture. Guidance above 1 batches [without, with].

        Dims     reference_embeds (1 or image, 1 + patches, width) -> images of the model's size
        Raises   ValueError unless one of example_image and reference_embeds is given, or for a size the encoder does not take
        """
        if (example_image is None) == (reference_embeds is None):
            raise ValueError("give the reference either as example_image or as reference_embeds")
        height, width = self.config.image_size
        person = self.image_processor.preprocess(image, height, width).to(self._execution_device)
        hole = self.mask_processor.preprocess(mask_image, height, width).to(person)
        pose = None if pose_image is None else self.image_processor.preprocess(pose_image, height, width).to(person)
        agnostic = self._encode(person * (1 - hole))
        fixed = torch.cat([agnostic, torch.zeros_like(agnostic) if pose is None else self._encode(pose)], 1)
        tokens = self.encode_reference(example_image) if reference_embeds is None else reference_embeds
        people = len(fixed) * num_images_per_prompt
        fixed = fixed.repeat_interleave(num_images_per_prompt, 0)
        tokens = tokens.to(fixed).expand(people, -1, -1)
        shape = (people, self.unet.config.out_channels, *fixed.shape[2:])
        latents = randn_tensor(shape, generator=generator, device=fixed.device, dtype=fixed.dtype) if latents is None else latents.to(fixed)
        self.scheduler.set_timesteps(num_inference_steps, device=fixed.device)
        latents = latents * self.scheduler.init_noise_sigma
        with self.progress_bar(total=num_inference_steps) as bar:
            for timestep in self.scheduler.timesteps:
                predicted = self._predict(latents, timestep, fixed, tokens, guidance_scale)
                latents = self.scheduler.step(predicted, timestep, latents, eta=eta, generator=generator).prev_sample
                bar.update()
        painted = latents
        if output_type != "latent":
            pixels = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
            painted = self.image_processor.postprocess(pixels, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=painted) if return_dict else (painted,)

    @torch.no_grad()
    def encode_reference(self, example_image: Any) -> Tensor:
        """Tokens of a reference, stretched to `reference_size`: CLS first, then the patches row by row.

        Dims     -> (image, 1 + patches, width)
        """
        pixels = self.reference_processor.preprocess(example_image, *self.reference_size)
        mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, DEVIATION))
        given = ((pixels - mean) / deviation).to(self._execution_device, self.image_encoder.dtype)
        tokens: Tensor = self.image_encoder(pixel_values=given).last_hidden_state
        return tokens

    def _encode(self, pixels: Tensor) -> Tensor:
        latent: Tensor = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()
        return latent.to(self.unet.dtype) * float(self.vae.config.scaling_factor)

    def _predict(self, latents: Tensor, timestep: Tensor, fixed: Tensor, tokens: Tensor, guidance_scale: float) -> Tensor:
        given = torch.cat([self.scheduler.scale_model_input(latents, timestep), fixed], 1)
        if guidance_scale <= 1:
            alone: Tensor = self.unet(given, timestep, encoder_hidden_states=tokens).sample
            return alone
        both = torch.cat([torch.zeros_like(tokens), tokens])
        without, with_reference = self.unet(torch.cat([given, given]), timestep, encoder_hidden_states=both).sample.chunk(2)
        guided: Tensor = without + guidance_scale * (with_reference - without)
        return guided


def build_custom(
    vae: Any = None,
    unet: Any = None,
    image_encoder: Any = None,
    scheduler: Any = None,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> CustomTryOnPipeline:
    """The model at its published size, with random weights for whatever is not given.

    Raises   InvalidInput for parts that do not fit together
    """
    random = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        made = {
            "vae": vae or _ready(AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS, subfolder="vae")), dtype),
            "unet": unet or _ready(UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS, subfolder="unet")), dtype),
            "image_encoder": image_encoder or _ready(Dinov2Model(Dinov2Config.from_pretrained(CONFIGS, subfolder="image_encoder")), dtype),
            "scheduler": scheduler or DDIMScheduler.from_config(DDIMScheduler.load_config(CONFIGS, subfolder="scheduler")),
        }
    finally:
        torch.set_rng_state(random)
    return CustomTryOnPipeline(**made)


def _ready(model: Any, dtype: torch.dtype) -> Any:
    return nn.Module.to(model, dtype).eval()


def _check_fit(vae: Any, unet: Any, image_encoder: Any, reference_size: tuple[int, int]) -> None:
    """Refuse parts that would fail, or be fed the wrong thing, in the middle of a run."""
    net, latent, patch = unet.config, vae.config.latent_channels, image_encoder.config.patch_size
    read, made = net.encoder_hid_dim or net.cross_attention_dim, image_encoder.config.hidden_size
    whole = not any(side % patch for side in reference_size)
    checks = (
        (read == made, f"the U-Net reads tokens {read} wide, the image encoder makes them {made} wide"),
        (net.in_channels == 3 * latent, f"the U-Net takes {net.in_channels} channels, expected {3 * latent}: three latents of {latent}"),
        (net.out_channels == latent, f"the U-Net makes {net.out_channels} channels, a latent has {latent}"),
        (whole, f"the reference size {tuple(reference_size)} is not a multiple of the encoder's patch of {patch}"),
    )
    if wrong := [what for holds, what in checks if not holds]:
        raise InvalidInput(f"the parts of the custom model do not fit together: {'; '.join(wrong)}")
