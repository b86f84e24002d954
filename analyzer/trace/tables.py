"""Tables of a trace's layers and steps: rows of plain facts, and the same for pandas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from ...schema.arrays.layers import data_plans
from ..store.validation import Contents

if TYPE_CHECKING:
    import pandas as pd

BLOCK: Final = re.compile(r"[^.]*block[^.]*(?:\.\d+)?|[^.]+\.\d+")
"""The outermost block of a module path, such as `down_blocks.0` or `mid_block`; of paths without one, the first numbered part."""


def layer_rows(contents: Contents) -> list[dict[str, Any]]:
    """One row a layer, as plain JSON."""
    return [
        {
            "index": index,
            "name": layer.name,
            "grid": list(layer.grid),
            "frames": layer.frames,
            "heads": layer.heads,
            "call_heads": layer.model_heads,
            "head_numbers": list(layer.heads_kept),
            "head_dim": layer.head_dim,
            "tokens": layer.tokens,
            "groups": [
                {"name": g.name, "role": g.role, "tokens": g.tokens, "specials": g.specials, "grid": list(g.grid) if g.grid else None}
                for g in layer.groups
            ],
            "encoding": layer.encoding,
            "values": layer.values,
            "residual": layer.residual,
            "concepts": list(layer.concepts),
            "calls": int(contents.present[:, index].sum()),
            "column_mass_lost": contents.lost[index],
        }
        for index, layer in enumerate(contents.record.layers)
    ]


def layer_table(contents: Contents) -> pd.DataFrame:
    """One row a layer, of numbers, texts and tuples of numbers, by which rows can be grouped."""
    import pandas as pd  # loads slowly, and plain rows do without

    rows = [
        {
            "layer": row["index"],
            "name": row["name"],
            "block": block[0] if (block := BLOCK.search(row["name"])) else "",
            **{name: tuple(row[name]) for name in ("grid", "head_numbers")},
            **{name: row[name] for name in ("frames", "heads", "call_heads", "head_dim", "tokens")},
            "groups": ", ".join(group["name"] for group in row["groups"]),
            **{name: row[name] for name in ("encoding", "values", "calls", "column_mass_lost")},
            "bytes": stored_bytes(contents, row["index"]),
        }
        for row in layer_rows(contents)
    ]
    return pd.DataFrame(rows).set_index("layer")


def stored_bytes(contents: Contents, index: int) -> int:
    """Bytes of the files that hold a layer's attention."""
    arrays = [contents.arrays[plan.path] for plan in data_plans(contents.record, index).values()]
    return sum(int(files.sizes[files.there].sum()) for files in arrays)


def step_table(contents: Contents) -> pd.DataFrame:
    """One row a step that counts, in execution order."""
    import pandas as pd

    steps = pd.RangeIndex(len(contents.present), name="step")
    return pd.DataFrame({**contents.steps, "layers": contents.present.sum(axis=1)}, index=steps)
