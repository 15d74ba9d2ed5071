"""Decisions as pure functions: a view of the mesh and the facts of one connection in, a plan out.

Each result carries its reason, so that the log line, the admin answer and ``ztunnel explain`` are views
of one value. Randomness is a parameter; there is no clock and no I/O.
"""
