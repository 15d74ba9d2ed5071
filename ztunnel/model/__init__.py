"""The objects of the mesh as frozen values: identities, addresses, workloads, services, policies.

This package does no I/O and reads no clock, and its values do not depend on their source.
"""
