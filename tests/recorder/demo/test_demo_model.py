"""The demo pipeline: a true diffusers citizen whose attention passes through SDPA; its training, and its shipped weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from torch.nn import functional  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

import probe  # noqa: E402
import train  # noqa: E402
from feed import batches, draw_pool  # noqa: E402
from i2am.recorder.demo.pairs import Pair, draw_pair  # noqa: E402
from i2am.recorder.demo.pipeline import WEIGHTS, TryOnPipeline, load_shipped  # noqa: E402
from i2am.recorder.demo.truth import held_out_pairs  # noqa: E402
from plan import Plan, build_pipeline  # noqa: E402

SMALL = Plan(size=32, channels=(32, 32), width=32, batch=2, pool=4, steps=4, threads=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipeline() -> TryOnPipeline:
    torch.manual_seed(0)
    built = build_pipeline(SMALL)
    built.set_progress_bar_config(disable=True)
    return built


@pytest.fixture(scope="module")
def pair() -> Pair:
    return draw_pair(1, SMALL.size)


def run(pipeline: TryOnPipeline, pair: Pair, **call: Any) -> Any:
    inputs = {"image": pair.agnostic, "mask_image": pair.mask, "example_image": pair.reference}
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    return pipeline(**(inputs | options | call)).images


class Calls(TorchFunctionMode):
    """Notes (rows, queries, keys) of every scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            self.shapes.append((args[0].shape[0], args[0].shape[2], args[1].shape[2]))
        return func(*args, **(kwargs or {}))


def test_saved_and_loaded_paints_the_same(pipeline: TryOnPipeline, pair: Pair, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = TryOnPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(run(loaded, pair), run(pipeline, pair))


def test_all_attention_passes_through_sdpa(pipeline: TryOnPipeline, pair: Pair) -> None:
    blocks = sum(name.endswith(("attn1", "attn2")) for name, _ in pipeline.unet.named_modules())
    with Calls() as calls:
        run(pipeline, pair)
    assert len(calls.shapes) == 2 * blocks
    # 8 x 8 patches and CLS; two levels of queries; both guidance branches in one call.
    assert {shape for shape in calls.shapes if shape[2] == 65} == {(2, 64, 65), (2, 16, 65)}


def test_guidance_off_spares_the_branch_without_reference(pipeline: TryOnPipeline, pair: Pair) -> None:
    with Calls() as calls:
        unguided = run(pipeline, pair, guidance_scale=1.0)
    assert {rows for rows, _, _ in calls.shapes} == {1}
    assert not np.array_equal(run(pipeline, pair, guidance_scale=3.0), unguided)


def test_branch_without_reference_comes_first(pipeline: TryOnPipeline, pair: Pair) -> None:
    contexts: list[Any] = []
    handle = pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: contexts.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    run(pipeline, pair, num_images_per_prompt=2)
    handle.remove()
    without, given = contexts[0].chunk(2)
    assert torch.equal(without, pipeline.image_encoder.unconditional_tokens(2))
    assert torch.equal(given[0], given[1])


def test_inputs_of_any_kind_give_the_same_image(pipeline: TryOnPipeline, pair: Pair) -> None:
    def pil(array: Any) -> Any:
        return pipeline.numpy_to_pil(array.astype(np.float32))[0]

    rounded = (pair.agnostic * 255).round() / 255, (pair.reference * 255).round() / 255
    arrays = run(pipeline, pair, image=rounded[0], example_image=rounded[1])
    pictures = run(pipeline, pair, image=pil(pair.agnostic), mask_image=pil(pair.mask[..., None]), example_image=pil(pair.reference))
    np.testing.assert_allclose(pictures, arrays, atol=1e-5)
    # What the image shows under the mask is hidden by the pipeline itself.
    np.testing.assert_allclose(run(pipeline, pair, image=pair.person), run(pipeline, pair), atol=1e-5)


def test_outputs(pipeline: TryOnPipeline, pair: Pair) -> None:
    assert run(pipeline, pair, num_images_per_prompt=2).shape == (2, 32, 32, 3)
    assert run(pipeline, pair, output_type="pt").shape == (1, 3, 32, 32)
    assert run(pipeline, pair, output_type="pil")[0].size == (32, 32)
    inputs = {"image": pair.agnostic, "mask_image": pair.mask, "example_image": pair.reference}
    assert isinstance(pipeline(**inputs, num_inference_steps=1, return_dict=False), tuple)


def test_step_callback_may_change_the_latents(pipeline: TryOnPipeline, pair: Pair) -> None:
    seen: list[tuple[int, int]] = []

    def blank(_: TryOnPipeline, index: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((index, timestep))
        return {"latents": torch.zeros_like(tensors["latents"])}

    painted = run(pipeline, pair, callback_on_step_end=blank)
    assert seen == [(0, 999), (1, 499)]
    assert (painted[0][pair.mask] == 0.5).all()


def test_the_visible_person_is_kept(pipeline: TryOnPipeline, pair: Pair) -> None:
    painted = run(pipeline, pair)[0]
    np.testing.assert_allclose(painted[~pair.mask], pair.person[~pair.mask], atol=1e-6)
    assert not np.allclose(painted[pair.mask], pair.person[pair.mask], atol=0.1)


def test_wrong_sizes_and_outputs_are_refused(pipeline: TryOnPipeline, pair: Pair) -> None:
    with pytest.raises(ValueError, match="height: this model paints 32 x 32 pixels, got 64"):
        run(pipeline, pair, height=64)
    with pytest.raises(ValueError, match="output_type: expected 'pil', 'np' or 'pt', got 'gif'"):
        run(pipeline, pair, output_type="gif")


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    source = batches(draw_pool(SMALL), SMALL, torch.device("cpu"), torch.Generator().manual_seed(0))
    trainer = train.Trainer(SMALL, torch.device("cpu"))
    start = trainer.model.state_dict()["0.conv_in.weight"].clone()
    trainer.step(next(source))
    trainer.save(tmp_path / "state.pt")
    assert trainer.progress == 0.25
    other = train.Trainer(SMALL, torch.device("cpu"))
    other.load(tmp_path / "state.pt")
    assert other.steps == 1
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    assert not torch.equal(start, other.model.state_dict()["0.conv_in.weight"])
    train.export(other, tmp_path / "weights")
    loaded = TryOnPipeline.from_pretrained(tmp_path / "weights")
    halved = other.average.unet.conv_in.weight.half().float()
    assert torch.equal(loaded.unet.conv_in.weight, halved)


def test_the_scripts_train_and_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--size=32", "--channels=32,32", "--width=32", "--batch=2", "--pool=4", "--steps=2", "--threads=1"]
    train.main(["--out", str(tmp_path), "--keep=1", *small], standalone_mode=False)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    capsys.readouterr()
    probe.main([str(tmp_path), "--pairs=1", "--steps=1", "--threads=1"], standalone_mode=False)
    assert set(json.loads(capsys.readouterr().out)) == {"painting", "worst_pair", "found"}


def test_shipped_weights_paint_and_find_the_garment() -> None:
    result = probe.measure(load_shipped(), held_out_pairs(4), steps=6, guidance_scale=1.2)
    assert result["painting"] < 1 / 3
    assert max(result["found"].values()) >= 0.9
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) < 12e6
