"""Matrix products in pieces so small that BLAS computes them in the calling thread.

OpenBLAS starts threads of its own for a product that is large enough, and they wait for each other by spinning. Under dask, whose
workers already use every core, that made single small products take a hundred times as long.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[Any]

VECTOR: Final = 2**13
"""Elements of a matrix-vector product that are worked on in the calling thread; OpenBLAS starts threads above 9,216."""
MATRIX: Final = 2**18
"""Multiplications of a matrix product that are done in the calling thread; OpenBLAS starts threads above."""
FEW_ROWS: Final = 16
"""Pieces of fewer rows cost more than threads do; such products are left whole."""


def weighted_sum(weights: Values, values: Values) -> Values:
    """weights @ values, summed over pieces in float64.

    Dims     (row,), (row, column) -> (column,)
    """
    rows = max(1, VECTOR // values.shape[1])
    whole = len(values) // rows * rows
    pieces = np.matmul(weights[:whole].reshape(-1, 1, rows), values[:whole].reshape(-1, rows, values.shape[1]))
    total: Values = pieces.sum((0, 1), dtype=np.float64) + weights[whole:] @ values[whole:]
    return total


def row_products(values: Values, weights: Values) -> Values:
    """values @ weights: one dot product a row, which never starts threads.

    Dims     (row, column), (column,) -> (row,)
    """
    products: Values = np.vecdot(values, weights)
    return products


def product(left: Values, right: Values) -> Values:
    """left @ right, in pieces of the left one's rows.

    Dims     (row, inner), (..., inner, column) -> (..., row, column)
    """
    inner, columns = right.shape[-2:]
    rows = MATRIX // (inner * columns)
    if rows < FEW_ROWS or len(left) <= rows:
        result: Values = np.matmul(left, right)
        return result
    out = np.empty((*right.shape[:-2], len(left), columns), np.result_type(left, right))
    whole = len(left) // rows * rows
    pieces = np.matmul(left[:whole].reshape(-1, rows, inner), right[..., None, :, :])
    out[..., :whole, :] = pieces.reshape(*right.shape[:-2], whole, columns)
    out[..., whole:, :] = np.matmul(left[whole:], right)
    return out
