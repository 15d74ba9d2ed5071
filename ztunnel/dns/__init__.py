"""DNS: the proxy in each pod (15053), and the resolver for workloads that are known only by hostname.

`message` and `reply` are bytes in, bytes out; `resolv_conf` reads the configuration; `upstream` asks the real
resolver; `dns_proxy` owns the sockets; `resolver` decides, with `ztunnel.decide.dns_names`, who answers.
"""
