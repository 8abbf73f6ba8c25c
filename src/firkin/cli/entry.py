"""The program ``firkin`` starts here, with nothing loaded yet.

Loading takes tenths of a second, and an interrupt meanwhile is no fault to show
a traceback of: until the command line can answer one, SIGINT ends the program as
it ends any other. So this module imports next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False  # see `firkin.__init__`
if TYPE_CHECKING:
    from typing import NoReturn

_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line and exit."""
    signals = import_module("_signal")  # what `signal` wraps: that loads enum first, as long as all else here together
    interrupt, answered = signals.SIGINT, signals.default_int_handler
    heeded = signals.getsignal(interrupt) is answered  # else whoever started us has it ignored
    if heeded:
        signals.signal(interrupt, signals.SIG_DFL)
    from firkin.cli.main import main as command_line

    try:
        if heeded:
            signals.signal(interrupt, answered)
        command_line()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    finally:
        if heeded:
            signals.signal(interrupt, signals.SIG_DFL)  # nothing is left to do but the interpreter's own end
