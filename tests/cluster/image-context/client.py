"""Traffic as users have it: new connections at a rate, one kept-alive connection, one stream.

usage: client.py URL SECONDS RATE [FILE]

It ends after SECONDS, or as soon as FILE is there.
A line for each failure as it happens, with the time, and a summary in JSON as the last line. That also has
when each new connection that failed began and ended, and those that took longer than half a second, with
what of it was for DNS and for TCP's handshake.
SECONDS is at most 900 and RATE 200, so that a forgotten client ends.
"""

import http.client
import json
import pathlib
import socket
import sys
import threading
import time
import urllib.parse

url = urllib.parse.urlsplit(sys.argv[1])
seconds, rate = min(float(sys.argv[2]), 900.0), min(float(sys.argv[3]), 200.0)
end = time.monotonic() + seconds
stop = pathlib.Path(sys.argv[4]) if len(sys.argv) > 4 else None
lock = threading.Lock()
result: dict[str, dict[str, float]] = {
    kind: {"ok": 0, "failed": 0, "slowest": 0.0} for kind in ("new", "kept", "stream")
}
errors: list[tuple[float, str]] = []
failed: list[tuple[float, float]] = []  # new connections: when each began, and when it failed
SLOW = 0.5
slow: list[tuple[float, ...]] = []  # when it began; seconds for its name, for TCP's handshake, in all


def is_over():
    return time.monotonic() >= end or (stop is not None and stop.exists())


def connect(host=url.hostname):
    return http.client.HTTPConnection(str(host), url.port or 80, timeout=15)


def get(connection):
    connection.request("GET", url.path or "/", headers={"Host": url.netloc})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise OSError(f"status {answer.status}")


def account(kind, started, error=None, phases=()):
    took = time.monotonic() - started
    with lock:
        if error is None:
            result[kind]["ok"] += 1
            result[kind]["slowest"] = max(result[kind]["slowest"], round(took, 3))
            if phases and took > SLOW and len(slow) < 200:
                slow.append(tuple(round(each, 3) for each in (time.time() - took, *phases, took)))
        else:
            result[kind]["failed"] += 1
            words = f"{kind} {type(error).__name__}: {error} after {took:.3f} s"
            now = time.time()
            if len(errors) < 200:
                errors.append((round(now, 3), words))
                if kind == "new":
                    failed.append((round(now - took, 3), round(now, 3)))
            print(time.strftime("%H:%M:%S", time.gmtime()), words, flush=True)


def one():
    started = time.monotonic()
    try:
        found = socket.getaddrinfo(url.hostname, url.port or 80, type=socket.SOCK_STREAM)
        resolved = time.monotonic()
        connection = connect(found[0][4][0])
        try:
            connection.connect()
            connected = time.monotonic()
            get(connection)
        finally:
            connection.close()
        account("new", started, phases=(resolved - started, connected - resolved))
    except (OSError, http.client.HTTPException) as error:
        account("new", started, error)


def new():
    threads: list[threading.Thread] = []
    due = time.monotonic()
    while not is_over():
        thread = threading.Thread(target=one, daemon=True)
        thread.start()
        threads = [*(each for each in threads if each.is_alive()), thread]
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
    for thread in threads:
        thread.join(20)


def kept():
    connection = None
    while not is_over():
        started = time.monotonic()
        try:
            connection = connection or connect()
            get(connection)
            account("kept", started)
            time.sleep(0.05)
        except (OSError, http.client.HTTPException) as error:
            account("kept", started, error)
            connection = None
            time.sleep(0.1)


def stream():
    while not is_over():
        started = time.monotonic()
        try:
            connection = connect()
            connection.request("GET", "/stream")
            answer = connection.getresponse()
            while not is_over():
                started = time.monotonic()
                line = answer.readline()
                account("stream", started, None if line else OSError("the stream ended"))
                if not line:
                    time.sleep(0.2)
                    break
        except (OSError, http.client.HTTPException) as error:
            account("stream", started, error)
            time.sleep(0.2)


workers = [threading.Thread(target=each, daemon=True) for each in (new, kept, stream)]
for worker in workers:
    worker.start()
workers[0].join(seconds + 30)
print(json.dumps({**result, "errors": errors, "failed": failed, "slow": slow}), flush=True)
