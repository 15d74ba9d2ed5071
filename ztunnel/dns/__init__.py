"""DNS: the proxy in each pod (15053), and the resolver for workloads that are known by hostname only.

`message` and `reply` are bytes in, bytes out; `resolv_conf` reads the configuration; `upstream` asks the real
resolver; `server` has the sockets and decides, with `ztunnel.decide.dns_names`, who answers.
"""
