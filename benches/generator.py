"""The clients of the bench. Owns how blobs are pulled and small requests are made, and what that cost
the clients themselves; knows nothing of who answers.

Blobs: one process for each core, a thread for each client; without TLS the kernel drops what came
instead of copying it (MSG_TRUNC), so that a client costs next to nothing. Small requests:
wrk, and ab for HEAD, which wrk cannot do.
"""

import concurrent.futures
import multiprocessing
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import typing

# OpenSSL reads this once, when it is loaded. The programs that we start have their own.
if "ssl" in sys.modules:
    raise ImportError("generator comes before all that loads OpenSSL")
os.environ["OPENSSL_CONF"] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clients.cnf")
import ssl  # noqa: E402

del os.environ["OPENSSL_CONF"]

from parts import Failed  # noqa: E402

# What an engine takes; distribution answers 404 to a client that takes less.
ACCEPT = "application/vnd.oci.image.manifest.v1+json, */*"
SILENCE_SECONDS = 60
PIECE = 4 << 20
TLS_PIECE = 256 << 10


class Door(typing.NamedTuple):
    """Where a contestant listens; `ca` if it speaks TLS there."""

    port: int
    ca: str | None = None


class Pulled(typing.NamedTuple):
    """What some clients got: seconds until the last of them had its first byte, and until the end;
    bytes; and what it cost them."""

    first: float
    seconds: float
    bytes: int
    client_cpu: float


def connect(door):
    """A connection, through its handshake. Nothing is waited for longer than SILENCE_SECONDS."""
    connection = socket.create_connection(("127.0.0.1", door.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A time-out of Python's own would cost a poll for each read.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SILENCE_SECONDS, 0))
    if door.ca:
        context = ssl.create_default_context(cafile=door.ca)
        connection = context.wrap_socket(connection, server_hostname="localhost")
    return connection


def read_head(connection, path):
    """Reads the head of an answer; the bytes of the body that came with it, and those to come."""
    head, end = b"", -1
    while end < 0:
        piece = connection.recv(16384)
        if not piece:
            raise Failed(f"{path}: the connection was closed instead of an answer")
        head += piece
        end = head.find(b"\r\n\r\n")
    if b" 200 " not in head[:15]:
        raise Failed(f"{path} was not answered with 200: {head[:300]}")
    came = len(head) - end - 4
    return came, int(re.search(rb"(?i)\r\ncontent-length: *(\d+)", head).group(1)) - came


def pull_paths(door, paths, begin_at):
    """One client; the moments of its first byte and of the last, and the bytes."""
    first, total = None, 0
    buffer = memoryview(bytearray(TLS_PIECE if door.ca else PIECE))
    drop = () if door.ca else (0, socket.MSG_TRUNC)
    with connect(door) as connection:
        time.sleep(max(0, begin_at - time.monotonic()))
        for path in paths:
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {ACCEPT}\r\n\r\n"
            connection.sendall(head.encode())
            came, left = read_head(connection, path)
            while left:
                first = first or (time.monotonic() if came else None)
                count = connection.recv_into(buffer[:left], *drop)
                if count == 0:
                    raise Failed(f"{path} ended {left} bytes early")
                came, left = came + count, left - count
            first = first or time.monotonic()
            total += came
    return first, time.monotonic(), total


def pull_share(door, shares, begin_at):
    """The clients of one process, each in a thread; what each of them got, and processor time."""
    cpu = time.process_time()
    with concurrent.futures.ThreadPoolExecutor(len(shares)) as threads:
        clients = list(threads.map(lambda paths: pull_paths(door, paths, begin_at), shares))
    return clients, time.process_time() - cpu


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
        # By then all are connected.
        begin = time.monotonic() + 0.02 + 0.004 * len(shares)
        futures = [self.pool.submit(pull_share, door, part, begin) for part in parts]
        done = [future.result() for future in futures]
        clients = [client for part, _ in done for client in part]
        return Pulled(
            first=max(first for first, _, _ in clients) - begin,
            seconds=max(end for _, end, _ in clients) - begin,
            bytes=sum(count for _, _, count in clients),
            client_cpu=sum(cpu for _, cpu in done))

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
    with connect(door) as connection:
        return " ".join(map(str, connection.cipher()[1::-1]))


MS = {"us": 0.001, "ms": 1, "s": 1000}


def wrk(url, connections, seconds, paths=(), pause_ms=0):
    """GETs of one URL over so many connections, or of these paths in turns; with a pause after each
    answer."""
    threads = min(connections, os.cpu_count())
    lines = []
    if paths:
        lines += ["local paths = {" + ",".join(f'"{path}"' for path in paths) + "}; local at = 0",
                  "request = function() at = at % #paths + 1; return wrk.format(nil, paths[at]) end"]
    if pause_ms:
        lines += [f"delay = function() return {pause_ms} end"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write("\n".join(lines))
        script.flush()
        said = run_tool(["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency",
                         "-H", f"Accept: {ACCEPT}", "-s", script.name, url])
    wrong = re.search(r"Non-2xx.*|Socket errors.*", said)
    if wrong:
        raise Failed(f"wrk of {url}: {wrong.group()}")
    rank = {name: float(value) * MS[unit]
            for name, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)\b", said)}
    return Rate(int(re.search(r"(\d+) requests in", said).group(1)),
                float(re.search(r"Requests/sec:\s+([\d.]+)", said).group(1)),
                rank["50"], rank["99"])


def heads(url, connections, seconds):
    """HEADs of one URL over so many connections."""
    with tempfile.NamedTemporaryFile("r", suffix=".csv") as table:
        said = run_tool(["ab", "-q", "-k", "-i", "-c", str(connections), "-t", str(seconds),
                         "-n", "300000", "-H", f"Accept: {ACCEPT}", "-e", table.name, url])
        rank = dict(line.strip().split(",") for line in table)
    if "Non-2xx" in said or not re.search(r"Failed requests: +0\n", said):
        raise Failed(f"ab of {url}: {said}")
    return Rate(int(re.search(r"Complete requests: +(\d+)", said).group(1)),
                float(re.search(r"Requests per second: +([\d.]+)", said).group(1)),
                float(rank["50"]), float(rank["99"]))


def run_tool(command):
    """Runs a load generator; what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise Failed(f"no {command[0]}: run `tests/e2e/setup test`") from None
    if done.returncode != 0:
        raise Failed(f"{command} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout
