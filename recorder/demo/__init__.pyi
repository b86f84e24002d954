from .pairs import HELD_OUT as HELD_OUT
from .pairs import Pair as Pair
from .pairs import draw_pair as draw_pair
from .pipeline import TryOnPipeline as TryOnPipeline
from .pipeline import load_shipped as load_shipped
from .truth import held_out_pairs as held_out_pairs
