"""gRPC to the control plane: the bridge from grpcio's threads to trio, and the roots and token of a call."""
