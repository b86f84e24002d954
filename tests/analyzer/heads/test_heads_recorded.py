"""Head relevance from recordings of real pipelines: equal to the published algorithm run inside the model."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pipelines_text
import pytest
import torch
from repository import ROOT

import pipelines
from i2am.analyzer import concept_words, head_relevance, open_trace
from i2am.recorder import record
from i2am.recorder.demo.pipeline import load_shipped

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

CONCEPTS = {"Animals": ["dog", "mouse", "zebra"], "Color": ["red", "in the grass"], "Size": ["hat"]}
EXAMPLE = ROOT / "examples" / "mouse.py"


def test_counts_are_those_of_the_published_algorithm_inside_the_model(tmp_path: Path) -> None:
    pipeline, call = pipelines_text.prompted("a red dog")
    words = {"other": ["a cat"], "concepts": concept_words(CONCEPTS)}
    record(pipeline, tmp_path / "t.zarr", encoding="factors", probes=words, progress=False, **call())
    found = head_relevance(tmp_path / "t.zarr", concepts=CONCEPTS, draws=3, keep="time")
    trace = open_trace(tmp_path / "t.zarr")
    assert found["layer"].size >= 4
    embedded = {}
    for word in concept_words(CONCEPTS):
        ids = pipeline.tokenizer(word, padding="max_length", return_tensors="pt").input_ids
        count = len(pipeline.tokenizer(word).input_ids)
        with torch.no_grad():
            embedded[word] = pipeline.text_encoder(ids)[0][0, : count - 1]  # start of text and the word; no end
    for index, layer in enumerate(trace.layers):
        if not layer.probes:
            continue
        attention = pipeline.unet.get_submodule(layer.path.removeprefix("unet."))
        query = trace.blocks(index, "query")
        for step in range(len(trace.present)):
            name = f"0/{trace.id}/{layer.name}/0/{step}"
            rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()))
            counted = np.zeros((3, layer.heads), int)
            for _ in range(3):
                drawn = [CONCEPTS[concept][i] for concept, i in zip(CONCEPTS, rng.integers([3, 2, 1]), strict=True)]
                with torch.no_grad():
                    context = torch.cat([embedded[drawn[0]], *(embedded[word][1:] for word in drawn[1:])])
                    key = attention.to_k(context).reshape(len(context), layer.heads, -1).transpose(0, 1)
                    scores = torch.from_numpy(query[0, 0, step]).reshape(layer.heads, -1, layer.head_dim) @ key.transpose(1, 2)
                    mean = (scores * attention.scale).softmax(-1).mean(1)  # (head, token)
                ends = np.cumsum([1, *(len(embedded[word]) - 1 for word in drawn)])
                shares = torch.stack([mean[:, a:b].mean(1) for a, b in pairwise(ends)])
                counted[shares.argmax(0).numpy(), range(layer.heads)] += 1
            np.testing.assert_array_equal(found["count"].sel(layer=layer.name).values[step], counted)


def test_the_demo_s_heads_can_be_asked_about_garments(tmp_path: Path) -> None:
    pipeline = load_shipped()
    images = {name: pipelines.picture(seed, 32, 32) for seed, name in enumerate(("image", "example_image"))}
    probes = {"garments": [pipelines.picture(9 + i, 32, 32) for i in range(3)] + [images["example_image"]]}
    record(
        pipeline, tmp_path / "t.zarr", encoding="factors", probes=probes, progress=False, generator=pipelines.generator(),
        mask_image=pipelines.square_mask(), num_inference_steps=2, output_type="np", **images,
    )  # fmt: skip
    found = head_relevance(
        tmp_path / "t.zarr", concepts={"other": ["garments_0", "garments_1", "garments_2"], "own": ["garments_3"]}, probe="garments"
    )
    assert found.shape == (2, 7, 4) and (found["count"].sum("concept") == 2).all()
    np.testing.assert_allclose(found.sum(("layer", "head")), [28, 28])


def test_the_ambiguous_word_is_told_apart(tmp_path: Path) -> None:
    sys.path.insert(0, str(EXAMPLE.parent))
    try:
        from mouse import MEANINGS, PROBE, lean
    finally:
        sys.path.pop(0)
    pipeline, call = pipelines_text.prompted("a mouse")
    record(pipeline, tmp_path / "mouse.zarr", encoding="factors", probes={PROBE: concept_words(MEANINGS)}, progress=False, **call())
    leaning = lean(tmp_path / "mouse.zarr", draws=4)
    assert leaning.dims == ("time", "concept") and leaning["concept"].values.tolist() == ["animal", "device"]
    np.testing.assert_allclose(leaning.sum("concept"), 1)
    shown = subprocess.run([sys.executable, EXAMPLE, "--trace", tmp_path / "mouse.zarr"], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[0].split() == ["step", "timestep", "animal", "device"] and len(shown.splitlines()) == 4
    assert "heads lean to the" in shown.splitlines()[-1]
