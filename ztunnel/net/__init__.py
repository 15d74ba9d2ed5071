"""The system: sockets and namespaces, mesh TLS, the gRPC bridge. The only layer with threads."""
