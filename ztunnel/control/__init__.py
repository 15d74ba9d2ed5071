"""The control side: the sources of the mesh, the certificates and the pods, and the servers.

It owns the xDS stream, the CA client, the local file, the CNI connection and the servers, and communicates
with data planes only by messages.
"""
