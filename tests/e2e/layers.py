#!/usr/bin/env python3
"""The second host of a registry: what S3 is to ECR.

  layers.py PORT --files DIR [--tls CERT KEY]   serves the blobs of a docker-registry's DIR
  layers.py PORT --guard HOST:PORT              stands in front of an S3 that is too lenient

Like S3 it answers 400 to a request that carries `Authorization` beside a presigned query (with
`--files`: to any request that carries it), so that a proxy which leaks the registry's token fails.
`GET /-/seen` tells how many requests came and how many were refused, how many were GETs, the bytes
sent to them and the ranges they asked for; `POST /-/cut?N` makes it cut the replies that follow
after N bytes, `POST /-/rate?N` sends each at N bytes a second (0: no longer).
"""

import argparse
import http.client
import json
import os
import re
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 64 * 1024


class State:
    """What all connections share."""

    def __init__(self, options):
        self.options = options
        self.lock = threading.Lock()
        self.seen = {"requests": 0, "refused": 0, "gets": 0, "bytes": 0, "ranges": [],
                     "active": 0}
        self.cut_after = 0
        self.rate = 0

    def count(self, name, number=1):
        with self.lock:
            self.seen[name] += number


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # Head and body are two writes: without this each reply waits 40 ms for an acknowledgement.
    disable_nagle_algorithm = True
    state = None

    def do_GET(self):
        self.handle_any()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.path == "/-/seen":
            return self.reply(200, json.dumps(self.state.seen).encode())
        if self.path.startswith("/-/cut?"):
            self.state.cut_after = int(self.path.partition("?")[2])
            return self.reply(200, b"")
        if self.path.startswith("/-/rate?"):
            self.state.rate = int(self.path.partition("?")[2])
            return self.reply(200, b"")
        authorized = "Authorization" in self.headers
        presigned = "X-Amz-Signature=" in self.path
        if self.state.options.files or presigned:
            self.state.count("requests")
            if authorized:
                self.state.count("refused")
                text = b"<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism"
                return self.reply(400, text + b" allowed</Message></Error>")
        if self.state.options.files:
            return self.serve_file()
        return self.forward(body)

    def serve_file(self):
        root = os.path.realpath(self.state.options.files)
        path = os.path.realpath(root + self.path.partition("?")[0])
        if not path.startswith(root + os.sep) or not os.path.isfile(path):
            return self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        size = os.path.getsize(path)
        first, last, status = 0, size - 1, 200
        # S3 sends the whole for more than one range, and for one that ends before it begins.
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        start, end = wanted.groups() if wanted else ("", "")
        if start and end and int(start) > int(end):
            start, end = "", ""
        if start or end:
            first = int(start) if start else max(0, size - int(end))
            last = min(last, int(end)) if start and end else last
            status = 206
            if first >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        self.send_response(status)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        with self.state.lock:
            self.state.seen["gets"] += 1
            self.state.seen["active"] += 1
            self.state.seen["ranges"].append(self.headers.get("Range"))
        try:
            return self.send_piecewise(path, first, last - first + 1)
        except OSError:
            # The client went away, which is what many a check is about.
            self.close_connection = True
            return None
        finally:
            self.state.count("active", -1)

    def send_piecewise(self, path, first, count):
        cut_after = self.state.cut_after or count
        rate, begin, sent = self.state.rate, time.monotonic(), 0
        with open(path, "rb") as file:
            file.seek(first)
            left = min(count, cut_after)
            while left > 0:
                piece = file.read(min(PIECE, left))
                self.wfile.write(piece)
                self.state.count("bytes", len(piece))
                left -= len(piece)
                sent += len(piece)
                if rate:
                    time.sleep(max(0, sent / rate - (time.monotonic() - begin)))
        if cut_after < count:
            # A plain close after too few bytes: the hardest cut to notice.
            self.wfile.flush()
            self.close_connection = True

    def forward(self, body):
        host, _, port = self.state.options.guard.partition(":")
        upstream = http.client.HTTPConnection(host, int(port))
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        upstream.close()

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main():
    """Serves until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--files")
    parser.add_argument("--guard")
    parser.add_argument("--tls", nargs=2)
    options = parser.parse_args()
    Handler.state = State(options)
    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*options.tls)
        # The handshake belongs to the connection's own thread, not to the accepting one.
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.serve_forever()


if __name__ == "__main__":
    main()
