"""HBONE tunnels as Trio tasks: TLS and HTTP/2 together, an object for each stream, and the pool of a pod.

This package drives `ztunnel.hbone` and `ztunnel.tls`. `ztunnel.proxy` uses the streams.
"""
