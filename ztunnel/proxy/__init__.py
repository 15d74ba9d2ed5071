"""The tasks that carry connections: listeners, outbound, inbound, passthrough, drain.

Decisions come from `ztunnel.decide`, tunnels from `ztunnel.tunnel`, sockets from `ztunnel.sockets`. What is
here waits, moves bytes, and sees to it that each socket is closed by the scope that opened it.
"""
