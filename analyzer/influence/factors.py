"""What a softmax value is multiplied by, from P and the values of one head: Kobayashi's norms, contributions, effects of losing a key.

With u_r = v_r W, W a head's part of the output projection, o_x = sum_r P[x,r] v_r, and y_x = sum over heads of o_x W:

    norm          |u_r|
    contribution  (u_r . y_x) / |y_x|
    knock-out     |(o_x - v_r) W| / (1 - P[x,r])

The sum over heads and tokens of P times contribution is |y_x|. P times knock-out is how far o_x W moves if key r is left out of the
softmax, exactly. Everything is float64: the knock-out is a difference of nearly equal numbers.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..numerics.products import product

Values: TypeAlias = NDArray[Any]


def norms(value: Values, output: Values) -> Values:
    """|u_r| of each head.

    Dims     value (..., head, token, channel), output (head, channel, output channel) -> (..., head, token)
    Source   Kobayashi et al., Attention is Not Only a Weight, EMNLP 2020
    """
    gram = output @ output.swapaxes(1, 2)
    lengths: Values = np.sqrt(np.maximum(((value @ gram) * value).sum(-1), 0))
    return lengths


def directions(given: Values, output: Values) -> Values:
    """y_x / |y_x| W' of each head, whose product with v_r is the contribution; 0 where y_x is.

    Dims     given, which is o (head, position, channel); output (head, channel, output channel) -> (head, position, channel)
    """
    total = sum(product(mine, own) for mine, own in zip(given, output, strict=True))
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    unit = np.divide(total, length, out=np.zeros_like(total), where=length > 0)
    return np.stack([product(unit, own.T) for own in output])


def knock_outs(probability: Values, value: Values, gram: Values) -> Values:
    """|(o_x - v_r) W| / (1 - P[x,r]) of one head; P is first scaled to sum to 1, which as float16 it does not exactly.

    Of a key that has most of a row, the mean of the others' values is subtracted instead: the same number, without a quotient of two
    differences that both vanish. It is 0 where nothing else is left, as in a call with one key.

    Dims     probability (position, token), all of them; value (token, channel), gram, which is W W' (channel, channel) -> as probability
    """
    total = probability.sum(1, keepdims=True)
    given = product(probability, value)
    seen, own = product(given, gram), (product(value, gram) * value).sum(1, keepdims=True)
    # |o - S v|^2 as one product: o G o, -2 S o G v and S^2 v G v, S the sum of the row.
    terms = np.concatenate([-2 * total * seen, total**2, (seen * given).sum(1, keepdims=True)], 1)
    effects = product(terms, np.concatenate([value, own, np.ones_like(own)], 1).T)
    np.sqrt(np.maximum(effects, 0, out=effects), out=effects)
    left = total - probability
    np.divide(effects, left, out=effects, where=left > 0)
    first = probability.argmax(1)
    most = np.flatnonzero(np.take_along_axis(probability, first[:, None], 1) > total / 2)
    others, first = probability[most], first[most]
    others[np.arange(len(most)), first] = 0
    sums = others.sum(1, keepdims=True)
    away = np.divide(product(others, value), sums, out=value[first], where=sums > 0) - value[first]
    effects[most, first] = np.sqrt(np.maximum((product(away, gram) * away).sum(1), 0))
    return effects
