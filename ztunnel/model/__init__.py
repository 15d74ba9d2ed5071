"""The nouns of the mesh as frozen values: identities, addresses, workloads, services, policies.

Nothing here does I/O, reads a clock or knows where a value came from.
"""
