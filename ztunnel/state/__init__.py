"""The mesh in memory: workloads as the bytes that came, indexes, deltas put into force in slices."""
