"""The tasks that carry connections: listeners, outbound, inbound, passthrough, drain.

Decisions come from `ztunnel.decide`, tunnels from `ztunnel.tunnel`, sockets from `ztunnel.sockets`. The tasks
here wait, move bytes, and close each socket in the scope that opened it.
"""
