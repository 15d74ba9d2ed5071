"""The entry point of the program. It runs before anything that takes time is imported.

An interrupt while modules are loaded ends the program without a traceback; after that, the module of the
command decides what an interrupt does. The garbage collector is off until then: modules are no garbage, and
collections would take a tenth of the start's CPU time.

When the command has returned, the interpreter waits for threads, also for those of libraries
(`ztunnel.grpc.bridge`). That wait has a limit.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys


def main() -> int:
    """Run the command line. Returns the exit status."""
    # Python's default handler raises KeyboardInterrupt anywhere, for instance in the middle of an import. If
    # the signal is ignored, as in a shell's background job, it stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ztunnel.admin.early import listen_early  # noqa: PLC0415 - not before the lines above

    early = listen_early(sys.argv[1:], os.environ)
    gc.disable()  # a command switches it on when it begins: ztunnel.cli, ztunnel.system.memory
    from ztunnel.bounds import DEFAULTS  # noqa: PLC0415 - not before the lines above
    from ztunnel.cli import main as run  # noqa: PLC0415 - not before the lines above

    status = run(early=early)
    told = sys.stderr or os.open(os.devnull, os.O_WRONLY)  # open until the end
    faulthandler.dump_traceback_later(DEFAULTS.control.process_end, exit=True, file=told)
    return status
