"""Network namespaces: entering a pod's, and making sockets there. The only thread for it is in here."""
