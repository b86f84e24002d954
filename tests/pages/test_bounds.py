"""The lower bounds of pyproject.toml are the versions that are tested."""

from __future__ import annotations

import re
import tomllib

import pytest
from repository import ROOT

pytestmark = pytest.mark.analyzer

DEVELOPMENT = ("browser", "docs", "dev")
"""Extras that users need not."""
BOUND = re.compile(r"([a-z0-9-]+)(?:\[[a-z,]+\])?>=([0-9.]+)")


def same(first: str, second: str) -> bool:
    """Whether two versions are equal but for zeros at the end."""
    a, b = ([int(part) for part in text.split(".")] for text in (first, second))
    longest = max(len(a), len(b))
    return a + [0] * (longest - len(a)) == b + [0] * (longest - len(b))


def test_every_bound_of_the_analyzer_is_what_lowest_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in (
        *project["dependencies"],
        *extras["netcdf"],
        *extras["parquet"],
        *extras["cluster"],
        *extras["remote"],
        *extras["plot"],
    ):
        found = BOUND.fullmatch(requirement)
        assert found, requirement
        name, bound = found.groups()
        assert same(tested[name], bound), f"{requirement}, but {tested[name]} is tested"


def test_linters_and_tests_are_no_part_of_what_users_install() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["all"] == [f"i2am[{','.join(name for name in extras if name not in (*DEVELOPMENT, 'all'))}]"]
    assert not {"pytest", "ruff", "mypy"} & {
        re.split(r"\W", each)[0] for name, rows in extras.items() if name not in DEVELOPMENT for each in rows
    }
