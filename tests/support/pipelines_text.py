"""Tiny pipelines that read their prompts themselves: CLIP and T5 tokenizers made from scratch, random text encoders; as `pipelines`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pipelines_transformers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

import pipelines
from pipelines import WIDTH, Built, generator, picture

LENGTH = 12
"""Tokens of a CLIP prompt, padding included."""
LONG = 16
"""Tokens of a T5 prompt."""
SIZE = {"height": 32, "width": 32}
PIECES = ("dog", "cat", "mouse", "red", "zeb", "ra", "a", "and", "in", "the", "hat", "grass")


def clip_tokenizer() -> CLIPTokenizer:
    """Letters and punctuation; `dog`, `cat` and such are one token, `zebra` is two."""
    signs = [*(chr(code) for code in range(ord("a"), ord("z") + 1)), ",", ".", "'", "-", "!", "1", "2"]
    vocab = ["<|startoftext|>", "<|endoftext|>", *signs, *(f"{sign}</w>" for sign in signs)]
    merges: list[tuple[str, str]] = []
    for word in PIECES:
        last = "" if word == "zeb" else "</w>"
        parts = [*word[:-1], word[-1] + last]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            vocab.append(parts[0])
    unique = dict.fromkeys(vocab)
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(unique)}, merges=list(dict.fromkeys(merges)), model_max_length=LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """Unigrams: letters, some words behind a space."""
    signs = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [f"▁{word}" for word in (*PIECES, "z")]
    pieces = ["<pad>", "</s>", "<unk>", "▁", "ebra", *words, ",", ".", *signs]
    vocab = [(piece, -float(2 + i / 10 if i < 20 else 9)) for i, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=LONG)


def clip_encoder(projection: bool = False, width: int = WIDTH, seed: int = 5) -> Any:
    torch.manual_seed(seed)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    size = {"hidden_size": width, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": width}
    config = CLIPTextConfig(**size, **special, vocab_size=200, max_position_embeddings=LENGTH)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_encoder(width: int) -> T5EncoderModel:
    torch.manual_seed(6)
    config = T5Config(d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=60, relative_attention_num_buckets=8)
    return T5EncoderModel(config).eval()


def prompt_arguments(prompt: Any = "a red dog, a cat", **changes: Any) -> dict[str, Any]:
    given = {"prompt": prompt, "num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "np", **SIZE, "generator": generator()}
    return {**given, **changes}


def prompted(prompt: Any = "a red dog, a cat", kinds: tuple[str, ...] = (), **changes: Any) -> Built:
    """Stable Diffusion with its tokenizer and text encoder, and IP-Adapters of these kinds."""
    pipeline = pipelines.stable_diffusion(encoder=bool(kinds))
    pipeline.register_modules(text_encoder=clip_encoder(), tokenizer=clip_tokenizer())
    if kinds:
        pipelines.load_adapters(pipeline, *kinds)
        images = [picture(10 + index, 48, 32) for index in range(len(kinds))]
        changes = {"ip_adapter_image": images[0] if len(kinds) == 1 else images, **changes}
    return pipeline, lambda: prompt_arguments(prompt, **changes)


def prompted_xl(prompt: Any = "a red dog, a cat", **changes: Any) -> Built:
    """SDXL: two encoders beside each other, each half as wide as the denoiser's context."""
    from diffusers import StableDiffusionXLPipeline

    torch.manual_seed(0)
    half = WIDTH // 2
    settings = {
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 24 + half,
    }
    pipeline = StableDiffusionXLPipeline(
        vae=pipelines.vae(),
        text_encoder=clip_encoder(width=half),
        text_encoder_2=clip_encoder(True, half, seed=7),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=pipelines.unet(**settings),
        scheduler=pipelines.SCHEDULERS["euler"](),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, lambda: prompt_arguments(prompt, **changes)


def prompted_sd3(prompt: Any = "a zebra, a cat", **changes: Any) -> Built:
    """SD3: 12 CLIP tokens, the T5's behind them."""
    pipeline, _ = pipelines_transformers.sd3()
    wide = pipelines_transformers.WIDE
    parts: dict[str, Any] = {"text_encoder": clip_encoder(True, wide // 2), "text_encoder_2": clip_encoder(True, wide - wide // 2, 7)}
    parts |= {
        "text_encoder_3": t5_encoder(wide),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
    }
    pipeline.register_modules(**parts)
    pipeline.tokenizer_max_length = LENGTH
    return pipeline, lambda: prompt_arguments(prompt, max_sequence_length=LONG, **changes)


def prompted_flux(prompt: Any = "a zebra, a cat", **changes: Any) -> Built:
    """Flux: the T5's tokens; CLIP gives one vector that meets no attention."""
    pipeline, _ = pipelines_transformers.build("flux")
    wide = pipelines_transformers.WIDE
    parts = {"text_encoder": clip_encoder(width=wide), "text_encoder_2": t5_encoder(wide)}
    pipeline.register_modules(**parts, tokenizer=clip_tokenizer(), tokenizer_2=t5_tokenizer())
    pipeline.tokenizer_max_length = LENGTH
    return pipeline, lambda: prompt_arguments(prompt, max_sequence_length=LENGTH, **changes)


FAMILIES: dict[str, Callable[..., Built]] = {"sd": prompted, "sdxl": prompted_xl, "sd3": prompted_sd3, "flux": prompted_flux}
