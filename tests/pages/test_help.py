"""`help` of the functions that users meet first explains every parameter and shows a call."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap

import pytest

FUNCTIONS = {"r2g": "i2am.analyzer", "record": "i2am.recorder"}
LIKE_R2G = ("g2r", "sram", "token_map")


def found(name: str) -> tuple[list[str], str]:
    """A function's parameters, and its help."""
    module = FUNCTIONS.get(name, "i2am.analyzer")
    if module == "i2am.recorder":
        pytest.importorskip("torch")
    function = getattr(importlib.import_module(module), name)
    kinds = inspect.signature(function).parameters
    return [key for key, each in kinds.items() if each.kind is each.KEYWORD_ONLY], inspect.getdoc(function) or ""


def shown(text: str) -> list[str]:
    """The blocks that are set in by four spaces."""
    return [textwrap.dedent(block) for block in re.findall(r"(?:^ {4}\S.*\n?)+", text, flags=re.M)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_explained(name: str) -> None:
    parameters, text = found(name)
    heads = re.findall(r"^((?:`\w+`(?:, )?)+)  ", text, flags=re.M)
    assert re.findall(r"\w+", " ".join(heads)) == parameters


@pytest.mark.parametrize("name", [*FUNCTIONS, *LIKE_R2G])
def test_an_example_calls_it(name: str) -> None:
    parameters, text = found(name)
    (example,) = shown(text)
    calls = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name]
    assert len(calls) == 1
    known = {*parameters, "prompt", "image", "mask_image", "at"}
    assert {each.arg for each in calls[0].keywords} <= known


@pytest.mark.parametrize("name", LIKE_R2G)
def test_what_is_alike_is_explained_once(name: str) -> None:
    parameters, text = found(name)
    assert "What `r2g` takes too means the same here" in text
    shared, _ = found("r2g")
    assert all(f"`{each}`" in text for each in parameters if each not in shared)
