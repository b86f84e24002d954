"""A small try-on diffusion model with known ground truth: synthetic pairs, pipeline, weights and the command `i2am demo`.

Hands on the pairs: `draw_pair`, `Pair` and `HELD_OUT`, the first seed that training never uses. Is trained by `examples/train_demo`;
nothing else in i2am imports it.
"""

from .pairs import HELD_OUT as HELD_OUT
from .pairs import Pair as Pair
from .pairs import draw_pair as draw_pair
