"""The ledgers: what is written is read, what is torn is left out, what is changed is an error."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.schema.errors import CorruptTrace, UnknownVersion
from i2am.schema.journal import FileSum, Step, decode_lines, decode_manifest, encode_line, encode_manifest

pytestmark = pytest.mark.analyzer

DIGEST = "ab" * 32
finite = st.floats(allow_nan=False, allow_infinity=False)


def entry(step: int = 0, **fields: Any) -> Step:
    files = {f"layers/000/probability/c.0.0.{step}.0.0.0.0": FileSum(12, DIGEST, "0123abcd" * 2)}
    return dataclasses.replace(Step(step, step, 981.0, None, step, (0,), {"0": ((step,),)}, {"0": 0.0}, files), **fields)


def journal(steps: int) -> str:
    return "".join(encode_line(entry(i)) for i in range(steps))


@given(st.lists(st.tuples(finite, finite | st.none(), st.integers(0, 99)), max_size=4))
def test_lines_come_back(rows: list[tuple[float, float | None, int]]) -> None:
    entries = [entry(i, timestep=t, sigma=s, scheduler_step=n) for i, (t, s, n) in enumerate(rows)]
    back = decode_lines("".join(map(encode_line, entries)))
    assert back == entries


@given(st.integers(0, 10**6))
def test_a_journal_cut_anywhere_keeps_its_finished_lines(cut: int) -> None:
    text = journal(3)
    cut %= len(text) + 1
    whole = text[:cut].count("\n")
    # A last line that only lost its newline carries a valid checksum and counts.
    assert len(decode_lines(text[:cut])) in (whole, whole + (text[cut : cut + 1] == "\n"))


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_leaves_the_truth(place: int, bit: int) -> None:
    good = journal(3).encode()
    bad = bytearray(good)
    bad[place % len(bad)] ^= 1 << bit
    try:
        entries = decode_lines(bytes(bad))
    except CorruptTrace:
        pass
    else:
        assert entries == decode_lines(good)[: len(entries)]
        assert place % len(bad) == len(bad) - 1 or len(entries) == 3


def test_missing_and_moved_lines() -> None:
    lines = journal(3).splitlines(keepends=True)
    with pytest.raises(CorruptTrace, match="is of step 2 where step 1 is expected"):
        decode_lines(lines[0] + lines[2])
    with pytest.raises(CorruptTrace, match="line 1"):
        decode_lines("\n" + "".join(lines))
    assert decode_lines("") == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\\b", "a//b"])
def test_files_outside_the_trace_are_refused(name: str) -> None:
    with pytest.raises(CorruptTrace, match="no file of a trace"):
        decode_lines(encode_line(entry(files={name: FileSum(1, DIGEST)})))
    with pytest.raises(CorruptTrace, match="no file of a trace"):
        decode_manifest(encode_manifest("id", {name: FileSum(1, DIGEST)}))


def test_manifest_comes_back_in_one_order() -> None:
    files = {"zarr.json": FileSum(3, DIGEST), "a/c.0": FileSum(0, "00" * 32, "89abcdef")}
    assert decode_manifest(encode_manifest("some-id", files)) == ("some-id", files)
    assert encode_manifest("some-id", files) == encode_manifest("some-id", dict(reversed(files.items())))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", CorruptTrace, "not JSON"),
        ("[]", CorruptTrace, "not a JSON object"),
        ('{"version": 3, "trace": "x", "files": {}}', UnknownVersion, "pip install --upgrade"),
        ('{"version": 1, "trace": "x"}', CorruptTrace, "lists no files"),
        ('{"version": 1, "trace": "x", "files": {"a": [-1, ""]}}', CorruptTrace, r"\[bytes, sha256, crc32c of the chunks\] for a"),
    ],
)
def test_a_changed_manifest(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        decode_manifest(text)
