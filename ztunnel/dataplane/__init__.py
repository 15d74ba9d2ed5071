"""The data plane: everything that carries traffic. It communicates only by messages.

It gets mesh deltas, certificates and pods as `ztunnel.messages` values, and sends acknowledgements, requests
for certificates, and reports. It runs in the control process, or in a process of its own over a socketpair
(`ztunnel.dataplane.worker`); its code is the same in both cases.
"""
