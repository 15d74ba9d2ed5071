"""``ztunnel demo``: a small mesh on this machine, built from network namespaces.

`machine`, `network`, `processes` and `capture` are also what the end-to-end tests build their meshes from.
"""

from ztunnel.demo.command import main

__all__ = ["main"]
