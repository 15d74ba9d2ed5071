"""Network namespaces: entering a pod's, and making sockets there. The helper thread for it is in here."""
