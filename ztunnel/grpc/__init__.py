"""gRPC to the control plane: the bridge from grpcio's threads to Trio, and the roots and token of a call."""
