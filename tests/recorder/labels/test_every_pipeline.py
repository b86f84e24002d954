"""The page's table of every pipeline class that diffusers exports: complete, in words, and true of classes that are run again."""

from __future__ import annotations

import random

import pytest
from every_influence import mistakes
from every_pipeline import absence, exported, kit_of
from every_row import load, row_of
from pipelines_table import classes
from repository import ROOT

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

RUN = [name for name in exported() if kit_of(name) is not None]
AGAIN = random.Random(9).sample(RUN, 24)
PROVEN = random.Random(9).sample([name for name, (result, *_) in load().items() if result == "recorded"], 6)


def test_every_exported_class_has_a_row_and_no_other() -> None:
    assert list(load()) == exported()


def test_a_class_is_recorded_or_refused_in_words_or_said_not_to_be_run() -> None:
    for name, (result, why, branches) in load().items():
        assert result in ("recorded", "refused", "not run"), f"{name}: {why}"
        assert why
        assert bool(branches) == (result == "recorded")
        assert (result == "not run") == bool(absence(name))


def test_the_page_has_the_rows_that_are_kept() -> None:
    assert (ROOT / "docs" / "pipelines.md").read_text().endswith("\n".join(classes()) + "\n")


@pytest.mark.parametrize("name", AGAIN)
def test_some_classes_still_have_their_rows(name: str) -> None:
    assert row_of(name) == load()[name]


@pytest.mark.parametrize("name", ["BriaFiboEditPipeline", *PROVEN])
def test_a_branch_answers_to_its_own_prompt_and_a_reference_to_its_own_picture(name: str) -> None:
    assert mistakes(name) == []


def test_a_latent_with_another_picture_beside_the_image_is_refused() -> None:
    assert row_of("DreamLitePipeline")[:2] == (
        "refused",
        "DreamLitePipeline steps a latent of (4, 4) and gives its denoiser one of (4, 8), in which other pictures stand beside the image "
        "being made, so it is not known which of its places are the image's",
    )
