"""The sources of the mesh: delta xDS from the control plane, and the local file."""
