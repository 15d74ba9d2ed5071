"""In-pod mode: which pods this node has, and their network namespaces, as the CNI agent tells over ZDS.

`codec` turns packets into requests, `session` decides what each means, `transport` owns the socket and the
descriptors that come over it, `client` drives the three and starts and stops pods through a `PodManager`.
"""
