"""Decisions as pure functions. Input: a view of the mesh and the facts of one connection. Output: a plan.

Each result carries its reason, so the log line, the admin answer and ``ztunnel explain`` are views of one
value. Randomness is a parameter; there is no clock and no I/O.
"""
