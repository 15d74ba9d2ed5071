"""``ztunnel demo``: a small mesh on this machine, made of network namespaces.

The end-to-end tests build their meshes with `machine`, `network`, `processes` and `capture` too.
"""

from ztunnel.demo.command import main

__all__ = ["main"]
