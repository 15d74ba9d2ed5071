"""ztunnel: the node proxy of Istio's ambient mesh."""

__version__ = "0.1.0"
