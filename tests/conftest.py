"""Where torch is not installed, only the files with tests of the analyzer are collected; Ctrl-C reaches tests that run behind a shell.

What tests read at addresses is not kept in the user's cache, and their own servers are asked directly.
"""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent

collect_ignore = (
    [] if find_spec("torch") else [str(path) for path in HERE.rglob("test_*.py") if "pytest.mark.analyzer" not in path.read_text()]
)

# A shell hides Ctrl-C from what it runs in the background, and what is hidden is inherited; some tests are about Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["I2AM_CACHE"] = "none"
os.environ["no_proxy"] = "127.0.0.1,localhost"
