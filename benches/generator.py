"""The clients of the bench. Owns how blobs are pulled and small requests are made, and what that cost
the clients themselves; knows nothing of who answers.

Blobs: one process for each core, each with its share of the connections; without TLS the kernel drops
what came instead of copying it (MSG_TRUNC), so that a client costs next to nothing. Small requests:
wrk, and ab for HEAD, which wrk cannot do.
"""

import concurrent.futures
import multiprocessing
import os
import re
import selectors
import socket
import subprocess
import time
import typing

# OpenSSL reads this once, when it is loaded. The programs that we start have their own.
os.environ["OPENSSL_CONF"] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clients.cnf")
import ssl  # noqa: E402

del os.environ["OPENSSL_CONF"]

from parts import Failed  # noqa: E402

# What an engine takes; distribution answers 404 to a client that takes less.
ACCEPT = "application/vnd.oci.image.manifest.v1+json, */*"
SILENCE_SECONDS = 60
PIECE = 4 << 20
TLS_PIECE = 256 << 10
# So that the connections of every process are open when the first request goes out.
HEAD_START_SECONDS = 0.02


class Pulled(typing.NamedTuple):
    """What some clients got: seconds until the first byte, until the last one, and what it cost."""

    first: float
    seconds: float
    bytes: int
    client_cpu: float


class Client:
    """A connection that asks for one path after the other."""

    def __init__(self, door, paths):
        self.paths, self.left, self.bytes = list(paths), 0, 0
        self.first = self.end = None
        self.socket = socket.create_connection(("127.0.0.1", door.port), SILENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tls = door.ca is not None
        self.buffer = memoryview(bytearray(TLS_PIECE if self.tls else PIECE))
        if self.tls:
            context = ssl.create_default_context(cafile=door.ca)
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")

    def ask(self):
        """Sends the next request; false when all were answered."""
        if not self.paths:
            self.end = time.monotonic()
            return False
        head = f"GET {self.paths.pop(0)} HTTP/1.1\r\nHost: localhost\r\nAccept: {ACCEPT}\r\n\r\n"
        self.socket.sendall(head.encode())
        self.head = b""
        return True

    def read_head(self):
        """Reads until the head is there. What came with it of the body counts."""
        self.head += self.socket.recv(16384)
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            if not self.head:
                raise Failed("the connection was closed instead of an answer")
            return
        head, body = self.head[:end], len(self.head) - end - 4
        if b" 200 " not in head[:15]:
            raise Failed(f"not answered with 200: {self.head[:300]}")
        self.left = int(re.search(rb"(?i)\r\ncontent-length: *(\d+)", head).group(1)) - body
        self.bytes += body
        self.head = None

    def read(self):
        """Reads what is there; false at the end of the last answer."""
        if self.head is not None:
            self.read_head()
        else:
            self.read_body()
        if self.first is None and self.bytes:
            self.first = time.monotonic()
        return self.ask() if self.head is None and self.left == 0 else True

    def read_body(self):
        buffer = self.buffer[:self.left]
        if self.tls:
            count = self.socket.recv_into(buffer)
        else:
            count = self.socket.recv_into(buffer, 0, socket.MSG_TRUNC)
        if count == 0:
            raise Failed(f"the body ended {self.left} bytes early")
        self.left -= count
        self.bytes += count


class Door(typing.NamedTuple):
    """Where a contestant listens; `ca` if it speaks TLS there."""

    port: int
    ca: str | None = None


def pull_share(door, shares, begin_at):
    """The clients of one process; moments of first bytes and of the end, bytes, processor time."""
    cpu = time.process_time()
    clients = [Client(door, paths) for paths in shares]
    time.sleep(max(0, begin_at - time.monotonic()))
    begin = time.monotonic()
    with selectors.DefaultSelector() as waiting:
        for client in clients:
            client.ask()
            client.socket.setblocking(False)
            waiting.register(client.socket, selectors.EVENT_READ, client)
        while waiting.get_map():
            events = waiting.select(SILENCE_SECONDS)
            if not events:
                raise Failed(f"nothing came for {SILENCE_SECONDS} s")
            for key, _ in events:
                if not read_ready(key.data):
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()
    return (begin, [client.first for client in clients], max(client.end for client in clients),
            sum(client.bytes for client in clients), time.process_time() - cpu)


def read_ready(client):
    """Reads from a socket that has something; with TLS all of it, since epoll does not see what the
    TLS library holds."""
    try:
        while client.read():
            if not client.tls:
                return True
    except (ssl.SSLWantReadError, BlockingIOError):
        return True
    return False


class Generator:
    """The processes that pull blobs; each core has one."""

    def __init__(self):
        self.count = os.cpu_count()
        self.pool = concurrent.futures.ProcessPoolExecutor(
            self.count, multiprocessing.get_context("fork"))
        list(self.pool.map(time.sleep, [0.05] * self.count))

    def pull(self, door, shares):
        """Each of `shares` is the paths that one client asks for, one after the other."""
        parts = [part for part in (shares[at::self.count] for at in range(self.count)) if part]
        begin_at = time.monotonic() + HEAD_START_SECONDS * (1 + len(shares) / 8)
        futures = [self.pool.submit(pull_share, door, part, begin_at) for part in parts]
        done = [future.result() for future in futures]
        begin = min(part[0] for part in done)
        return Pulled(
            first=max(first for part in done for first in part[1]) - begin,
            seconds=max(part[2] for part in done) - begin,
            bytes=sum(part[3] for part in done),
            client_cpu=sum(part[4] for part in done))

    def close(self):
        self.pool.shutdown(cancel_futures=True)


class Rate(typing.NamedTuple):
    """What wrk or ab found: requests a second, milliseconds."""

    requests: int
    per_second: float
    p50: float
    p99: float


def cipher_of(door):
    """The cipher that a contestant and our clients agree on."""
    client = Client(door, [])
    with client.socket:
        return " ".join(map(str, client.socket.cipher()[1::-1]))


MS = {"us": 0.001, "ms": 1, "s": 1000}


def wrk(url, connections, seconds, *options):
    """Requests of one URL over so many connections."""
    threads = min(connections, os.cpu_count())
    said = run_tool(["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency",
                     "-H", f"Accept: {ACCEPT}", *options, url])
    wrong = re.search(r"Non-2xx.*|Socket errors.*", said)
    if wrong:
        raise Failed(f"wrk of {url}: {wrong.group()}")
    rank = {name: float(value) * MS[unit]
            for name, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)\b", said)}
    return Rate(int(re.search(r"(\d+) requests in", said).group(1)),
                float(re.search(r"Requests/sec:\s+([\d.]+)", said).group(1)),
                rank["50"], rank["99"])


def run_tool(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise Failed(f"no {command[0]}: run `tests/e2e/setup measure test`") from None
    if done.returncode != 0:
        raise Failed(f"{command} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout
