"""Where the program begins: an interrupt while modules are still being loaded ends it without a traceback.

So this module imports nothing that takes time, and the command's own module decides what an interrupt means
once it has been loaded.
"""

from __future__ import annotations

import signal


def main() -> int:
    """Run the command line; the exit status."""
    # Python's default raises KeyboardInterrupt wherever it is, in the middle of an import for instance. Where
    # the signal is ignored, as in a shell's background job, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ztunnel.cli import main as run  # noqa: PLC0415 - not before the line above

    return run()
