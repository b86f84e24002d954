"""What a trace is: its records, the plan of its arrays, its codecs and errors. Needs numpy alone."""

from .codec import decode_probability as decode_probability
from .codec import encode_probability as encode_probability
from .layout import ArrayPlan as ArrayPlan
from .layout import layout as layout
from .record import FORMAT_VERSION as FORMAT_VERSION
from .text import Text as Text
from .text import Word as Word
from .trace import Codec as Codec
from .trace import Image as Image
from .trace import Layer as Layer
from .trace import TokenGroup as TokenGroup
from .trace import TraceRecord as TraceRecord
