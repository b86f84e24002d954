"""The table of `docs/methods.md` is the one that the rows make."""

import pytest
from repository import ROOT

from i2am.analyzer.methods.description import write_fields, write_markdown, write_names
from i2am.analyzer.methods.recipes import FIELDS, RECIPES, get_recipe

pytestmark = pytest.mark.analyzer

PAGE = ROOT / "docs" / "methods.md"


def test_the_page_has_the_table_that_the_command_prints() -> None:
    table = [line for line in PAGE.read_text().split("\n\nHow to read it:")[0].splitlines() if line.startswith("|")]
    assert table == write_markdown(list(RECIPES.values())).splitlines(), "print it with `i2am recipes --markdown`"


def test_a_changed_row_is_shown_as_such() -> None:
    row = get_recipe("daam", target=(64, 48), skip="*x*", factors=())
    assert write_names([row]).startswith("daam(skip=*x*, factors=, target=64+48)  Tang")
    assert "not `*x*`" in write_markdown([row])
    assert "| grid | 64 x 48 |" in write_markdown([row])
    lines = write_fields([row]).splitlines()
    assert len(lines) == 1 + len(FIELDS)
    assert "  * target=64+48" in lines
    assert "    clamp=yes" in lines
