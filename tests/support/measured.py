"""Coverage of the ztunnels that tests start, when the tests themselves run under coverage.

coverage tells its child processes by a variable of the environment. They write what they saw when they end
in order; a process that is killed writes nothing.
"""

from __future__ import annotations

import os
import signal

from ztunnel.demo.machine import Machine
from ztunnel.demo.processes import NotReadyError

_VARIABLE = "COVERAGE_PROCESS_CONFIG"
_SECONDS = 15.0


def measured_environment() -> dict[str, str]:
    """Returns what a ztunnel needs in its environment to be measured; nothing unless we are."""
    value = os.environ.get(_VARIABLE)
    return {} if value is None else {_VARIABLE: value}


def end_in_order(machine: Machine) -> None:
    """Let the ztunnels of a machine end by themselves, if they are measured. The others are killed later."""
    if not measured_environment():
        return
    running = [
        process
        for process in machine.processes
        if process.name.startswith("ztunnel") and process.returncode is None
    ]
    for process in running:
        process.signal(signal.SIGTERM)
    for process in running:
        try:
            process.wait(_SECONDS)
        except NotReadyError:
            pass
