"""A server of the nearly free model of the benchmark, with a fault: ``planted.py PORT FAULT``."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import numpy as np

FAULT = sys.argv[2] if len(sys.argv) > 2 else ""
#: Requests so far.
turn = count(1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # the head and the body of an answer go out together
    wbufsize = -1

    def do_POST(self) -> None:
        number = next(turn)
        x = np.frombuffer(self.rfile.read(int(self.headers["Content-Length"])), np.float32)
        y = x.reshape(3, -1).mean(1)
        if FAULT == "wrong" or (FAULT == "wrong later" and number > 20):
            y = y + np.float32(1e-3)
        if FAULT == "silent" and number > 20:
            self.close_connection = True
            return
        self.send_response(500 if FAULT == "sometimes 500" and number % 20 == 0 else 200)
        self.send_header("Content-Length", str(y.nbytes))
        self.end_headers()
        self.wfile.write(y.tobytes())

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    # clients come all at once
    request_queue_size = 64


if __name__ == "__main__":
    if FAULT == "does not start":
        sys.exit("there is no room for the model")
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
