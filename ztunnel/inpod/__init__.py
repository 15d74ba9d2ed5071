"""In-pod mode: the pods of this node and their network namespaces, as the CNI agent reports them over ZDS.

`codec` reads packets, `zds_session` decides what each request means, `packet_connection` owns the socket and
the descriptors that come over it, and `zds_client` drives the three and starts and stops pods through a
`PodManager`.
"""
