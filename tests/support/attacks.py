"""Attacks on a trace, seeded: files in each other's place, documents with one value changed, and things that are no files at all.

Each attack changes a copy and says what it did. `tally` counts what became of many: an answer that was right, a refusal in words, a wrong
answer, another exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from i2am.analyzer import g2r, open_trace, r2g, sram
from i2am.analyzer.inspection.verify import verify
from i2am.schema.errors import TraceError
from i2am.schema.journal import FileSum, decode_manifest, encode_manifest, require_bounded
from i2am.schema.layout import documents as documents_of
from i2am.schema.layout import root_document
from i2am.schema.record import canonical
from i2am.schema.trace import TraceRecord

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, 1.0, 2.5, 2**31, 10**18, 10**30, 10**400, float("inf"), float("nan"), "", "x", "\ud800", "\x1b[2J",
    "\u202eevil", "a" * 2000, [], [1], [[]], [-1, 6], [2.5, 2.5], [40000, 20000], [10**9, 10**9], {}, {"a": 1}, [True, True], [None, None],
)  # fmt: skip
"""What a field may be changed to."""


@dataclass
class Tally:
    """What became of the cases."""

    results: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, what: str, ask: Callable[[], str]) -> None:
        """Count one case; `ask` returns the outcome, or raises."""
        try:
            result = ask()
        except TraceError as error:
            result = "refused in words"
            if not str(error).isprintable():
                result = "control characters"
        except Exception as error:  # anything else is what this looks for
            result = f"{type(error).__name__}: {str(error)[:80]}"
        self.results[result] += 1
        if result not in ("refused in words", "right"):
            self.wrong.append(f"{what}: {result}")


def answers(path: Path, partial: bool = False) -> dict[str, np.ndarray]:
    """What a user may ask of the trace, as arrays; whatever cannot be asked is left out."""
    trace = open_trace(path, partial=partial)
    found: dict[str, np.ndarray] = {f"image {image.name}": trace.image(image.name) for image in trace.images}
    asked = {"r2g": lambda: r2g(trace), "g2r": lambda: g2r(trace, keep="layer"), "sram": lambda: sram(trace, (1, 1))}
    if any(group.role == "reference" for layer in trace.layers for group in layer.groups):
        found |= {name: np.asarray(ask().values) for name, ask in asked.items()}
    for layer in range(len(trace.layers)):
        found |= {f"{layer} {view.__name__}": view(layer).values for view in (trace.probabilities, trace.generated_softmax)}
    for table in (trace.layer_table(), trace.step_table()):
        for row in table.to_dict("records"):
            json.dumps(row)
    repr(trace), trace._repr_html_()
    return found


def copy(source: Path, target: Path) -> Path:
    """A fresh copy, in hard links where the file system has them: attacks replace files, they never write into one."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=os.link)
    return target


def replace(path: Path, data: bytes) -> None:
    """Put another file in the place of one."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def swaps(traces: list[Path], target: Path, seed: int, cases: int) -> Tally:
    """A data file or picture in the place of another of the same size, of this trace or of another recording of the same shape."""
    chance, tally = random.Random(seed), Tally()
    expected = answers(traces[0])
    by_size: dict[int, list[Path]] = {}
    for trace in traces:
        for file in sorted(trace.rglob("c.*")):
            by_size.setdefault(file.stat().st_size, []).append(file)
    pairs = [(own, other) for same in by_size.values() for own in same for other in same if own.is_relative_to(traces[0])]
    pairs = [(own, other) for own, other in pairs if own.read_bytes() != other.read_bytes()]
    for _ in range(cases):
        victim, foreign = chance.choice(pairs)
        path = copy(traces[0], target)
        replace(path / victim.relative_to(traces[0]), foreign.read_bytes())

        def ask(path: Path = path) -> str:
            found = answers(path)
            return "right" if all(np.array_equal(found[name], expected[name], equal_nan=True) for name in expected) else "silent and wrong"

        tally.add(f"{foreign} for {victim.name}", ask)
    return tally


def documents(trace: Path, target: Path, seed: int, cases: int) -> Tally:
    """One value of the root, the manifest or a journal line changed, added or removed, with every checksum made to agree."""
    chance, tally = random.Random(seed), Tally()
    partial = not (trace / "manifest.json").exists()
    for _ in range(cases):
        path = copy(trace, target)
        what = chance.choice(["zarr.json", "journal.jsonl"] if partial else ["zarr.json", "manifest.json"])
        done = _change(path, what, chance)

        def ask(path: Path = path) -> str:
            with contextlib.suppress(TraceError):
                answers(path, partial)
            report = verify(path, partial=partial)
            return "right" if report.ok else "refused in words"

        tally.add(f"{what} {done}", ask)
    return tally


def _change(path: Path, what: str, chance: random.Random) -> str:
    lines = (path / what).read_text().splitlines() if what == "journal.jsonl" else [(path / what).read_text()]
    at = chance.randrange(len(lines))
    document = json.loads(lines[at])
    inner = document["attributes"]["i2am"] if what == "zarr.json" else document.get("entry", document)
    holder, key = chance.choice(list(_places(inner)))
    value = chance.choice([*VALUES, "gone", "twice"])
    if value == "gone":
        holder.pop(key)
    elif value == "twice" and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = value
    if what == "journal.jsonl":
        document["crc32"] = f"{zlib.crc32(canonical(inner).encode(errors='surrogatepass')):08x}"
    document.get("attributes", {}).pop("i2am_sha256", None)
    lines[at] = json.dumps(document)
    replace(path / what, "\n".join([*lines, ""]).encode(errors="surrogatepass"))
    if what == "zarr.json" and (path / "manifest.json").exists():
        _make_consistent(path, inner)
    return f"{key} -> {value!r:.60}"


def _make_consistent(path: Path, record: Any) -> None:
    """Rewrite every document as this record plans it, if it can be planned, and the manifest's hashes of them: what a forger would do."""
    identity, sums = decode_manifest((path / "manifest.json").read_bytes())
    changed = {"zarr.json": (path / "zarr.json").read_bytes()}
    with contextlib.suppress(TraceError):
        made = TraceRecord.from_json(record)
        require_bounded(made)
        if made.status == "complete":
            planned = {f"{folder}/zarr.json": document for folder, document in documents_of(made).items()}
            planned["zarr.json"] = root_document(made)
            changed = {name: json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass") for name, document in planned.items()}
    for name, data in changed.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        replace(path / name, data)
        sums[name] = FileSum(len(data), hashlib.sha256(data).hexdigest())
    replace(path / "manifest.json", encode_manifest(identity, sums).encode())


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value below."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)) and value[key]:
            yield from _places(value[key])
