"""A worker that waits ten minutes for the answer to a PING: its peers send more than a busy machine reads.

An answer that waits behind megabytes of an attack comes late where the worker gets little CPU time.
"""

from __future__ import annotations

from dataclasses import replace

from ztunnel.bounds import DEFAULTS
from ztunnel.dataplane.worker import main

if __name__ == "__main__":
    main(replace(DEFAULTS, tunnel=replace(DEFAULTS.tunnel, ping_timeout=600.0)))
