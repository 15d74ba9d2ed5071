"""ztunnel: the node proxy of Istio's ambient mesh."""
