"""The tasks that carry connections: listeners, outbound, inbound, pass-through, tunnels and the pool, drain.

Decisions come from `ztunnel.decide`, bytes from `ztunnel.hbone` and `ztunnel.net`; what is here waits,
moves bytes, and sees to it that each socket is closed by the scope that opened it.
"""
