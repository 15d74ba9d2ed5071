"""Where the program begins, before anything that takes time is imported.

An interrupt while modules are still being loaded ends the program without a traceback; the command's own
module decides what an interrupt means once it has been loaded. Python's collector of reference cycles rests
until then: modules are no garbage, and looking for some among them is a tenth of the start's CPU time.
"""

from __future__ import annotations

import gc
import os
import signal
import sys


def main() -> int:
    """Run the command line; the exit status."""
    # Python's default raises KeyboardInterrupt wherever it is, in the middle of an import for instance. Where
    # the signal is ignored, as in a shell's background job, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ztunnel.admin.early import listen_early  # noqa: PLC0415 - not before the lines above

    early = listen_early(sys.argv[1:], os.environ)
    gc.disable()  # a command enables it when it begins: ztunnel.cli, ztunnel.system.memory
    from ztunnel.cli import main as run  # noqa: PLC0415 - not before the lines above

    return run(early=early)
