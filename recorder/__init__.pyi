from .session.recording import record as record
from .session.recording import recording as recording
from .store.recovery import Sealed as Sealed
from .store.recovery import seal as seal
