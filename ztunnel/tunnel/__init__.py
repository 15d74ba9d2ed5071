"""HBONE tunnels as Trio tasks: TLS and HTTP/2 driven together, an object for each stream, the pool of a pod.

Bytes come from `ztunnel.hbone` and `ztunnel.tls`. What a stream is used for is the matter of `ztunnel.proxy`.
"""
