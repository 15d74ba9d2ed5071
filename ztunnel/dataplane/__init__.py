"""The data plane: everything that carries traffic, fed by messages alone.

It takes mesh deltas, certificates and pods as `ztunnel.messages` values and gives back acknowledgements,
wishes for certificates, and reports. It runs in the control process, or as a process of its own over a
socketpair (`ztunnel.dataplane.worker`); nothing in it knows which.
"""
