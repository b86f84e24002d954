"""The trace format: its records, the plan of its arrays, its codecs and its errors.

Hands on the records, `layout`, the codec pair, and every error that i2am raises on purpose. Imports numpy and the standard library alone.
"""

from .codec import decode_probability as decode_probability
from .codec import encode_probability as encode_probability
from .errors import AlreadyExists as AlreadyExists
from .errors import CorruptTrace as CorruptTrace
from .errors import IncompleteTrace as IncompleteTrace
from .errors import InvalidInput as InvalidInput
from .errors import MissingExtra as MissingExtra
from .errors import NoAnswer as NoAnswer
from .errors import NoCluster as NoCluster
from .errors import NoSpace as NoSpace
from .errors import NotATrace as NotATrace
from .errors import TraceError as TraceError
from .errors import UnknownSelection as UnknownSelection
from .errors import UnknownVersion as UnknownVersion
from .errors import UnsupportedModel as UnsupportedModel
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
