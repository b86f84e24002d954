"""Which traces a path, a folder or a pattern names, and what each is called."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from i2am.analyzer.storage.storage import Storage
from i2am.analyzer.store import discovery
from i2am.analyzer.store.discovery import find_traces, is_dataset
from i2am.schema.errors import InvalidInput, NotATrace

pytestmark = pytest.mark.analyzer

TRACE = '{"zarr_format": 3, "node_type": "group", "attributes": {"i2am": {}}}'
MAP = '{"zarr_format": 3, "node_type": "group", "attributes": {}}'


def put(folder: Path, root: str | None = TRACE) -> Path:
    """A folder that holds what tells a trace from others; nothing here is opened."""
    folder.mkdir(parents=True)
    if root is not None:
        (folder / "zarr.json").write_text(root)
    return folder


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a", "deep/c"):
        put(Path("runs", f"{name}.zarr"))
    put(Path("runs/a.zarr/layers/000"))
    return Path("runs")


def names(*sources: object) -> list[str]:
    return [member.name for member in find_traces([str(source) for source in sources])]


def test_a_folder_stands_for_the_traces_below_it_sorted_and_not_for_what_is_inside_them(traces: Path) -> None:
    assert names(traces) == ["a", "b", "c"]


def test_arguments_keep_their_order_and_each_trace_counts_once(traces: Path) -> None:
    assert names(traces / "b.zarr", traces, "runs/deep/../a.zarr") == ["b", "a", "c"]


def test_patterns_are_expanded_where_no_shell_did(traces: Path) -> None:
    assert names("runs/*.zarr") == ["a", "b"]
    assert names("runs/**/c.zarr") == ["c"]


def test_a_path_with_brackets_is_itself_before_it_is_a_pattern(traces: Path) -> None:
    put(traces / "seed[1].zarr")
    assert names(traces / "seed[1].zarr") == ["seed[1]"]


def test_what_is_something_else_is_passed_over_and_what_may_have_been_a_trace_is_not(traces: Path) -> None:
    put(traces / "map.zarr", MAP)
    put(traces / ".8e1f-half.zarr")
    put(traces / "broken.zarr", "{")
    put(traces / "bare.zarr", None)
    put(traces / "notes", None).joinpath("text.txt").write_text("hello")
    assert names(traces) == ["a", "b", "bare", "broken", "c"]
    assert names(traces / "map.zarr") == ["map"], "who names it is told what it is"


def test_zip_files_of_traces_are_found_beside_folders_and_other_zip_files_are_not(traces: Path) -> None:
    for name in ("z.zarr.zip", "data.zip", ".half.zarr.zip"):
        (traces / name).write_bytes(b"PK")
    assert names(traces) == ["a", "b", "c", "z"]
    assert names("runs/*.zip") == ["data", "z"], "a pattern names what it matches"


def test_traces_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    found = [put(tmp_path / who / "run.zarr") for who in ("anna", "bert")]
    assert names(*found) == ["anna/run", "bert/run"]


def test_a_folder_may_link_to_traces_elsewhere_and_to_itself(traces: Path, tmp_path: Path) -> None:
    put(tmp_path / "far.zarr")
    (traces / "near.zarr").symlink_to(tmp_path / "far.zarr", target_is_directory=True)
    (traces / "loop").symlink_to(traces.resolve(), target_is_directory=True)
    assert names(traces) == ["a", "b", "c", "near"]


def test_one_trace_is_no_dataset_and_anything_else_is(traces: Path) -> None:
    (traces / "empty").mkdir()
    for single in ("a.zarr", "empty", "nothing.zarr"):
        assert not is_dataset([traces / single])
    for several in ([traces], ["runs/*.zarr"], [traces / "a.zarr", traces / "b.zarr"]):
        assert is_dataset(several)


def test_traces_are_listed_unopened_by_the_ledger_they_have(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    reading = discovery.read_json

    def counted(root: Storage, name: str) -> dict[str, object]:
        opened.append(Path(root.place).name)
        return reading(root, name)

    monkeypatch.setattr(discovery, "read_json", counted)
    for name in ("a.zarr", "b.zarr"):
        (traces / name / "journal.jsonl").touch()
    (traces / "deep/c.zarr/manifest.json").touch()
    put(traces / "map.zarr", MAP)
    assert names(traces) == names("runs/**/*.zarr", traces)[:3] == ["a", "b", "c"]
    assert opened == ["map.zarr"] * 2, "what has no ledger may be a map"


def test_a_hundred_thousand_names_are_listed_in_seconds(tmp_path: Path) -> None:
    count = 100_000
    for number in range(count):
        (tmp_path / f"pair-{number:06}.zarr").mkdir()
    begin = time.process_time()
    listed = find_traces(tmp_path)
    assert len(listed) == len(find_traces([member.path for member in listed])) == count
    assert time.process_time() - begin < 60, "6 s on an idle machine of 2026"


@pytest.mark.parametrize("sources", [["runs/empty"], ["runs/empty", "other/*.zarr"]])
def test_an_empty_dataset_is_said(traces: Path, sources: list[str]) -> None:
    (traces / "empty").mkdir()
    with pytest.raises(NotATrace, match=r"there is no trace in runs/empty.*i2am record"):
        find_traces(sources)


def test_no_paths_at_all_are_said() -> None:
    with pytest.raises(InvalidInput, match="no traces were given"):
        find_traces([])
