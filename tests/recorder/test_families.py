"""The rows of families: each names what diffusers has, and the nearest class decides."""

from __future__ import annotations

from fnmatch import filter as matching

import diffusers
import pytest
from diffusers.models import embeddings

from i2am.recorder.dryrun.inputs import MAKERS
from i2am.recorder.families import DEFAULT, FAMILIES, INPUT_GOES, PROJECTIONS, Family, family_of, input_goes


@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.glob)
def test_a_row_names_pipelines_and_denoisers_of_diffusers(row: Family) -> None:
    assert [name for name in matching(dir(diffusers), row.glob) if name.endswith("Pipeline")]
    assert not row.denoiser or hasattr(diffusers, row.denoiser)
    assert not (row.edits and row.reference_goes), "a reference in the sequence is read there"


def test_adapters_projections_are_those_of_diffusers() -> None:
    assert all(hasattr(embeddings, name) for name in PROJECTIONS)


def test_every_maker_of_inputs_is_some_rows() -> None:
    assert {row.inputs for row in FAMILIES} - {""} == set(MAKERS)


def made(*names: str) -> type:
    """A class of the first name, below one of the second and so on."""
    bases: tuple[type, ...] = ()
    for name in reversed(names):
        bases = (type(name, bases, {}),)
    return bases[0]


@pytest.mark.parametrize(
    ("names", "glob"),
    [
        (("FluxPipeline",), "Flux*"),
        (("FluxKontextInpaintPipeline",), "FluxKontext*"),
        (("FluxControlNetPipeline",), "Flux*ControlNet*"),
        (("FluxTransformer2DModel",), "Flux*"),
        (("UNetMotionModel",), "AnimateDiff*"),
        (("MyPainter", "FluxFillPipeline", "DiffusionPipeline"), "FluxFillPipeline"),
        (("ChromaPipeline", "FluxIPAdapterMixin"), "Chroma*"),
        (("MyPainter", "FluxIPAdapterMixin"), "*"),
        (("StableDiffusionPipeline",), "*"),
    ],
)
def test_the_nearest_class_decides_and_mixins_do_not(names: tuple[str, ...], glob: str) -> None:
    cls = made(*names)
    assert family_of(cls).glob == family_of(cls()).glob == glob
    assert glob != "*" or family_of(cls) == DEFAULT


def test_what_an_input_becomes_goes_by_the_name_of_the_task() -> None:
    assert input_goes(made("StableDiffusionXLInpaintPipeline")()) == INPUT_GOES[0][1]
    assert input_goes(made("StableDiffusionPipeline", "IPAdapterMixin")()) == ""
