"""Mesh TLS: both sides of a tunnel's handshake, over a socket or any stream.

`context.client_context` and `context.server_context` make a `TlsContext` from a workload's certificate. Keep
it: making one costs half as much as a handshake. `SocketTls` and `StreamTls` (in `socket_and_stream_tls`) are
connections with non-blocking calls. Errors are in `tls_errors`.
"""
