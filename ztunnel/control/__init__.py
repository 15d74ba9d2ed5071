"""The control side: where the mesh, the certificates and the pods come from, and who is told about them.

It owns the xDS stream, the CA client, the local file, the CNI connection and the servers, and talks to data
planes in messages alone.
"""
