"""Where torch is not installed, only the files with tests of the analyzer are collected."""

from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent

collect_ignore = (
    [] if find_spec("torch") else [path.name for path in HERE.glob("test_*.py") if "pytest.mark.analyzer" not in path.read_text()]
)
