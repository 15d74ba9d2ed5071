"""The cluster's web application.

Says who it is and whom it saw; streams; has a probe. usage: server.py [PORT]
"""

import http.server
import os
import socket
import sys
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every second small answer on a kept connection waits 40 ms

    def do_GET(self):
        if self.path == "/stream":  # a line a second, for as long as somebody reads
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            number = 0
            while True:
                self.wfile.write(b"%d\n" % number)
                number += 1
                time.sleep(1)
        name = os.environ.get("VERSION", "web")
        body = f"{name} {socket.gethostname()} saw {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True

    def handle_error(self, request, client_address):  # clients that leave are no news
        pass


Server(("", int(sys.argv[1]) if len(sys.argv) > 1 else 8080), Handler).serve_forever()
