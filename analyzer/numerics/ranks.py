"""Rank correlation (Spearman), row by row, of drawn samples, and of shuffled orders; ties have their mean rank."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]


def ranks(values: NDArray[Any]) -> Values:
    """Ranks along the last axis, from 1.

    Dims     (..., value) -> (..., value)
    """
    order, first, last = _ties(np.asarray(values, np.float64))
    found = np.empty(order.shape)
    np.put_along_axis(found, order, (first + last) / 2 + 1, -1)
    return found


def standardized(rows: NDArray[Any]) -> Values:
    """Rows of mean 0 and length 1, so that their products are Pearson's correlations.

    Dims     (..., value) -> (..., value)
    Range    NaN for a row that is constant or holds NaN
    """
    centred = np.asarray(rows, np.float64) - np.mean(rows, -1, keepdims=True, dtype=np.float64)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    scale = np.abs(rows).max(-1, keepdims=True) * centred.shape[-1] ** 0.5
    known = length > scale * np.finfo(np.float64).eps
    found: Values = np.divide(centred, length, out=np.full(centred.shape, np.nan), where=np.broadcast_to(known, centred.shape))
    return found


def drawn_correlations(first: Values, second: Values, counts: NDArray[Any]) -> Values:
    """Rank correlation of samples of pairs, drawn with replacement.

    Dims     first, second (pair,); counts (sample, pair), how often each pair was drawn -> (sample,)
    Range    [-1, 1]; NaN for a sample in which one of them is constant
    """
    weights = counts / counts.sum(1, keepdims=True)
    one, two = (_centred(_drawn_ranks(values, counts), weights) for values in (first, second))
    lengths = np.sqrt((weights * one**2).sum(1) * (weights * two**2).sum(1))
    products = (weights * one * two).sum(1)
    found: Values = np.divide(products, lengths, out=np.full(len(counts), np.nan), where=lengths > 0)
    return found


def shuffled_correlations(first: Values, second: Values, orders: NDArray[np.intp]) -> Values:
    """Mean correlation of rows when the values of each row of `first` are put into another order, the same in all rows.

    Dims     first, second (row, value), both standardized; orders (sample, value) -> (sample,)
    """
    products: Values = first.T @ second / len(first)
    found: Values = products[orders, np.arange(orders.shape[1])].sum(1)
    return found


def _drawn_ranks(values: Values, counts: NDArray[Any]) -> Values:
    """Ranks of values that count as often as they were drawn.

    Dims     (value,), (sample, value) -> (sample, value)
    """
    order, first, last = _ties(values)
    sums = np.cumsum(counts[:, order], axis=1)
    before = sums[:, first] - counts[:, order[first]]
    found = np.empty(counts.shape)
    found[:, order] = (before + sums[:, last] + 1) / 2
    return found


def _centred(values: Values, weights: Values) -> Values:
    centred: Values = values - (weights * values).sum(1, keepdims=True)
    return centred


def _ties(values: Values) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The order of values along the last axis, and for each in that order where those equal to it begin and end.

    Dims     three of (..., value)
    """
    order = np.argsort(values, axis=-1, kind="stable")
    rises = np.diff(np.take_along_axis(values, order, -1), axis=-1) != 0
    place, edge = np.arange(values.shape[-1]), np.ones((*values.shape[:-1], 1), bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, rises], -1), place, 0), axis=-1)
    ends = np.where(np.concatenate([rises, edge], -1), place, values.shape[-1])
    last = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
    return order, first, last
