from .session.recording import record as record
from .session.recording import recording as recording
