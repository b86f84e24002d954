"""Products in pieces equal products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analyzer.numerics import products

pytestmark = pytest.mark.analyzer

LENGTH = st.integers(1, 70)


@settings(deadline=None, max_examples=60)
@given(LENGTH, LENGTH, LENGTH, st.integers(0, 3), st.sampled_from([2**4, 2**9, 2**13]), st.sampled_from([1, 16]))
def test_products_in_pieces_equal_products(rows: int, inner: int, columns: int, batch: int, size: int, few: int) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(rows, inner)), rng.normal(size=(*[2] * batch, inner, columns))
    values = rng.normal(size=(inner, columns))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "VECTOR", size)
        patch.setattr(products, "MATRIX", size * 16)
        patch.setattr(products, "FEW_ROWS", few)
        np.testing.assert_allclose(products.product(left, right), left @ right, atol=1e-12)
        np.testing.assert_allclose(products.weighted_sum(left[0], values), left[0] @ values, atol=1e-12)
        np.testing.assert_allclose(products.row_products(values, values[0]), values @ values[0], atol=1e-12)
