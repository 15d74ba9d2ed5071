"""What `helm test` runs, in the image of the release: each ztunnel is ready, and its metrics say it is one.

usage: check.py NAME    NAME: of a headless Service, whose addresses are the pods
"""

import socket
import sys
import urllib.request

READINESS, METRICS, SECONDS = 15021, 15020, 10


def get(address: str, port: int, path: str) -> str:
    """The body of a page of a pod. Raises OSError."""
    host = f"[{address}]" if ":" in address else address
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=SECONDS) as answer:
        return str(answer.read().decode())


def trouble(address: str) -> str:
    """What is wrong with a ztunnel; empty if nothing is."""
    try:
        get(address, READINESS, "/healthz/ready")
    except OSError as error:
        return f"is not ready ({error})"
    try:
        metrics = get(address, METRICS, "/metrics")
    except OSError as error:
        return f"shows no metrics ({error})"
    return "" if 'istio_build{component="ztunnel"' in metrics else "is no ztunnel: istio_build is missing"


def main(name: str) -> int:
    """Look at every pod; the exit status."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        print(f"{name}: {error}; is there a node that ztunnel runs on?")
        return 1
    troubles = {str(entry[4][0]): trouble(str(entry[4][0])) for entry in found}
    for address, what in sorted(troubles.items()):
        print(f"{address} {what or 'is ready'}")
    return 1 if any(troubles.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
