"""The mesh from the control plane: the delta xDS session and its stream; and from the local file."""
