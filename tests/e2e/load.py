#!/usr/bin/env python3
"""The proxy under slow and hostile clients: 200 that read a cached blob at 1 KB/s, slowhttptest's
three modes with 500 connections, and a soak of mixed requests, valid and hostile.

Run by `make load`; with `--tls` the proxy's own door speaks TLS. REQUESTS (100000) and SEED change
the soak. The checks do the same, with fewer requests and bounds for a shared machine.
"""

import contextlib
import hashlib
import os
import random
import re
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import threading
import time

import cached
from images import MIB, Layout
from parts import (
    MANIFESTS,
    Bench,
    Failed,
    Proxy,
    end_on_signals,
    proxy_command,
    random_bytes,
    wait_until,
)

READERS = 200
READER_RATE = 1000
# Longer than the 180 s over which a reader is judged, and which it may take nothing: who is cut by
# either is noticed.
HOLD_SECONDS = 260
# Below MIN_RATE (256 bytes/s): this one is cut.
TOO_SLOW_RATE = 100
HEALTH_MS_MAX = 200
RESIDENT_MAX_MB = 80
# The pull beside the slow readers may take so many times as long as the one before them.
PULL_FACTOR_MAX = 2

SLOW_CONNECTIONS = 500
SLOW_SECONDS = 60

THREADS = 8
GROWTH_MAX = 0.10
# Idle connections to registry and blob host that may be kept for later, one for each of the clients
# that were at it at a time; ureq closes them when it is used again.
DESCRIPTORS_SPARE = 2 * THREADS
SETTLE_SECONDS = 30


def door(bench, upstream, tls=None, **env):
    """A proxy with a cache, whose own door speaks TLS if a certificate is given."""
    env = {"CACHE_DIR": bench.fresh("cache-load"), "LOG_LEVEL": "INFO", **upstream.env, **env}
    if tls:
        env.update(ENABLE_SSL="true", SSL_CERTIFICATE=tls.chain, SSL_KEY=tls.key)
    started = bench.proxy(env, name="proxy-load", wait_ready=False)
    proxy = Proxy(started.process, started.port, tls)
    wait_until(proxy.process, "a token", lambda: proxy.get("/readyz").status == 200)
    return proxy


def connect(proxy, timeout=30):
    """A connection to the proxy's door, as far as the first byte of a request."""
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout)
    if proxy.tls is None:
        return raw
    context = ssl.create_default_context(cafile=proxy.tls.ca)
    return context.wrap_socket(raw, server_hostname="localhost")


def reset(connection):
    """Closes with a reset."""
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


def counts(proxy):
    """Descriptors and threads of the process."""
    pid = proxy.process.pid
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def wait_settled(proxy, before):
    """Waits until descriptors and threads are back."""
    def settled():
        descriptors, threads = counts(proxy)
        return descriptors <= before[0] + DESCRIPTORS_SPARE and threads <= before[1]

    try:
        wait_until(proxy.process, "descriptors and threads given back", settled, SETTLE_SECONDS)
    except Failed:
        folder = f"/proc/{proxy.process.pid}/fd"
        links = [os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)]
        raise Failed(f"descriptors, threads: {before} before, {counts(proxy)} after; "
                     f"{sorted(links)}") from None


def health_ms(proxy):
    """Milliseconds of one /healthz on a connection of its own."""
    begin = time.monotonic()
    status = proxy.get("/healthz").status
    if status != 200:
        raise Failed(f"/healthz answered {status}")
    return (time.monotonic() - begin) * 1000


def blob_seconds(proxy, digest, size):
    """Seconds that curl takes for a blob, as a client at full speed."""
    options = ["--cacert", proxy.tls.ca] if proxy.tls else []
    url = f"{proxy.url}/v2/team/load/blobs/{digest}"
    done = subprocess.run(
        ["curl", "-sS", "--fail", "-m", "120", "-o", "/dev/null", *options,
         "-w", "%{size_download} %{time_total}", url], capture_output=True)
    got = done.stdout.decode().split()
    if done.returncode != 0 or int(got[0]) != size:
        raise Failed(f"curl ended with {done.returncode} after {got}: {done.stderr.decode()}")
    return float(got[1])


# === slow readers ===


class Reader:
    """A client of a blob that reads at so many bytes a second, one lump a second."""

    def __init__(self, proxy, digest, rate):
        self.rate, self.got = rate, 0
        self.connection = connect(proxy)
        head = f"GET /v2/team/load/blobs/{digest} HTTP/1.1\r\nHost: {proxy.address}\r\n\r\n"
        self.connection.sendall(head.encode())
        self.connection.setblocking(False)

    def read(self):
        """Reads this second's lump; what did not come in time is not made up for. Whether it was cut
        shows only when the system's buffer is empty: the proxy's log says so at once."""
        with contextlib.suppress(OSError):
            self.got += len(self.connection.recv(self.rate))

    def close(self):
        self.connection.close()


def cut_for_slowness(proxy):
    """Seconds that the proxy served each of those whom it has cut so far."""
    lines = [line for line in cached.requests_in(proxy) if "aborted" in line]
    odd = [line for line in lines if not re.search("took nothing|slower than", line["aborted"])]
    if odd:
        raise Failed(f"cut for another reason: {odd[:3]}")
    return [float(line["duration_ms"]) / 1000 for line in lines]


def slow_readers(bench, upstream, tls=None, seconds=HOLD_SECONDS, readers=READERS):
    """The figures of many slow readers of one cached blob: slowest /healthz in ms, the time of a
    pull beside them as a multiple of one before, peak resident memory in MB, seconds until the one
    that is too slow was cut (none: not in time). Fails when another is cut or anything stays."""
    size = 128 * MIB
    digest = upstream.seed_blob("team/load", random_bytes(size))
    proxy = door(bench, upstream, tls)
    blob_seconds(proxy, digest, size)
    before = counts(proxy)
    alone = statistics.median(blob_seconds(proxy, digest, size) for _ in range(3))
    clients = [Reader(proxy, digest, READER_RATE) for _ in range(readers)]
    too_slow = Reader(proxy, digest, TOO_SLOW_RATE)
    health, beside = [], []
    stop = threading.Event()

    def watch():
        while not stop.wait(0.5):
            health.append(health_ms(proxy))
            if len(health) % 10 == 5:
                beside.append(blob_seconds(proxy, digest, size))

    watcher = Watcher(watch)
    with watcher, contextlib.ExitStack() as stack:
        for client in [*clients, too_slow]:
            stack.callback(client.close)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            tick = time.monotonic()
            for client in [*clients, too_slow]:
                client.read()
            time.sleep(max(0, tick + 1 - time.monotonic()))
        stop.set()
        cut = cut_for_slowness(proxy)
    if len(cut) > 1:
        raise Failed(f"{len(cut) - 1} of {readers} that read {READER_RATE} bytes/s were cut: {cut}")
    if any(client.got < READER_RATE for client in clients):
        raise Failed("a reader got nothing: nothing was measured")
    peak = proxy.process.status("VmHWM") / 1024
    wait_settled(proxy, before)
    proxy.process.stop()
    return max(health), statistics.median(beside) / alone, peak, cut[0] if cut else None


class Watcher:
    """A thread whose failure is raised where it is waited for."""

    def __init__(self, function):
        self.error = None

        def run():
            try:
                function()
            except Exception as error:  # handed on
                self.error = error

        self.thread = threading.Thread(target=run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.thread.join()
        if kind is None and self.error is not None:
            raise self.error


# === memory of a connection ===

HELD = 400


def kib_per_connection(bench, upstream, tls=None):
    """Resident KiB that each connection of a kind adds, by kind."""
    size = 64 * MIB
    digest = upstream.seed_blob("team/load", random_bytes(size))
    get = f"GET /v2/team/load/blobs/{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    put = b"POST /v2/team/load/blobs/uploads/ HTTP/1.1\r\nHost: a\r\n"
    put += b"Content-Length: 1000000\r\n\r\n" + bytes(100_000)
    grown = {}
    for kind, first in [
        ("idle", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("reading a cached blob", get),
        ("uploading", put),
    ]:
        env = {"MAX_CONNECTIONS_PER_PEER": "1000", "MAX_UPLOADS": str(HELD), "SHUTDOWN_GRACE": "1s"}
        proxy = door(bench, upstream, tls, **env)
        blob_seconds(proxy, digest, size)
        before = proxy.process.status("VmRSS")
        with contextlib.ExitStack() as stack:
            for _ in range(HELD):
                connection = stack.enter_context(connect(proxy))
                connection.sendall(first)
                if first is not put:
                    connection.recv(1)
            time.sleep(3)
            grown[kind] = (proxy.process.status("VmRSS") - before) / HELD
        proxy.process.stop()
    return grown


# === slowhttptest ===

MODES = {
    "slow headers": ["-H", "-x", "24"],
    "slow body": ["-B", "-s", "1000000", "-x", "10"],
    "slow read": ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3"],
}


def slow_http(bench, upstream, mode, tls=None, seconds=SLOW_SECONDS):
    """Milliseconds of the slowest /healthz while slowhttptest holds its connections, and whether
    the tool itself ever found the proxy unavailable. A cached blob is pulled meanwhile."""
    size = 8 * MIB
    digest = upstream.seed_blob("team/load", random_bytes(size))
    # All of them come from one address, and are to be let in.
    proxy = door(bench, upstream, tls, MAX_CONNECTIONS_PER_PEER="1000")
    blob_seconds(proxy, digest, size)
    before = counts(proxy)
    path = {"slow body": "/v2/team/load/blobs/uploads/"}.get(mode, f"/v2/team/load/blobs/{digest}")
    command = ["slowhttptest", *MODES[mode], "-c", str(SLOW_CONNECTIONS), "-r", "200", "-i", "5",
               "-l", str(seconds), "-p", "3", "-u", proxy.url + path]
    # Its descriptors are counted by `ulimit -n`, often 1024.
    attack = bench.start("slowhttptest", ["prlimit", "--nofile=4096", *command])
    health, most = [], 0
    while attack.alive():
        health.append(health_ms(proxy))
        blob_seconds(proxy, digest, size)
        most = max(most, counts(proxy)[1] - before[1])
        time.sleep(0.3)
    said = re.sub(r"\x1b\[[0-9;]*m", "", attack.text())
    if "service available" not in said.lower():
        raise Failed(f"slowhttptest did not run: {said[-1000:]}")
    if most < SLOW_CONNECTIONS // 5:
        raise Failed(f"only {most} connections were held: nothing was measured")
    wait_settled(proxy, before)
    proxy.process.stop()
    refused = re.search(r"service available:\s*NO", said) is not None
    return max(health), refused


# === mixed requests ===


class Mixed:
    """Requests of all kinds, one at a time; each fails when its answer is not what it must be."""

    def __init__(self, bench, upstream, proxy):
        self.proxy = proxy
        layout = Layout(bench.fresh("layout-load"))
        layout.add_image("one", [20_000, 5_000])
        upstream.seed(layout, "one", "team/load:1")
        self.digest = layout.tags["one"]["digest"]
        self.blobs = layout.blobs(self.digest)[1:]
        self.big = upstream.seed_blob("team/load", random_bytes(4 * MIB))
        for digest in [*self.blobs, self.big]:
            self.get(f"/v2/team/load/blobs/{digest}", 200)
        # What was whole a moment ago is in the cache a moment later.
        time.sleep(1)
        self.kinds = [(weight, getattr(self, name)) for name, weight in [
            ("page", 20), ("manifest", 25), ("blob", 25), ("part_of_a_blob", 10),
            ("nothing_there", 8), ("push", 2), ("pipelined", 10), ("odd_head", 20),
            ("half_a_head", 10), ("endless_upload", 5), ("broken_upload", 5),
            ("reset_in_a_blob", 8), ("only_a_connection", 5), ("large_head", 5),
        ]]

    def one(self, chance):
        """One of them, by weight."""
        weights, kinds = zip(*self.kinds)
        chance.choices(kinds, weights)[0](chance)

    # --- valid ---

    def page(self, chance):
        self.get(chance.choice(["/healthz", "/readyz", "/version"]), 200)

    def manifest(self, chance):
        method = chance.choice(["GET", "HEAD"])
        name = chance.choice(["1", self.digest])
        self.get(f"/v2/team/load/manifests/{name}", 200, method, Accept=MANIFESTS)

    def blob(self, chance):
        digest = chance.choice(self.blobs)
        body = self.get(f"/v2/team/load/blobs/{digest}", 200)
        if "sha256:" + hashlib.sha256(body).hexdigest() != digest:
            raise Failed(f"blob {digest} is not what arrived")

    def part_of_a_blob(self, chance):
        path = f"/v2/team/load/blobs/{self.blobs[0]}"
        given, status = chance.choice([
            ({"Range": "bytes=0-9"}, 206), ({"Range": "bytes=99999999-"}, 416),
            ({"Range": "bytes=x"}, 200), ({"If-None-Match": f'"{self.blobs[0]}"'}, 304)])
        self.get(path, status, **given)

    def nothing_there(self, chance):
        path, status = chance.choice([
            ("/v2/team/load/manifests/none", 404), ("/v2/UPPER/tags/list", 400),
            ("/nowhere", 404)])
        self.get(path, status)

    def push(self, chance):
        data = chance.randbytes(1000)
        begun = self.proxy.request("POST", "/v2/team/load/blobs/uploads/")
        target = begun.getheader("Location").removeprefix(self.proxy.url)
        digest = hashlib.sha256(data).hexdigest()
        done = self.proxy.request("PUT", f"{target}&digest=sha256:{digest}", data)
        if done.status != 201:
            raise Failed(f"push answered {done.status}: {done.body[:300]}")

    def pipelined(self, chance):
        head = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
        count = chance.randint(2, 20)
        with connect(self.proxy) as connection:
            connection.sendall((head * count).encode())
            with connection.makefile("rb") as stream:
                for _ in range(count):
                    if b" 200 " not in stream.readline():
                        raise Failed("a pipelined request was not answered")
                    while stream.readline() != b"\r\n":
                        pass
                    if stream.read(3) != b"ok\n":
                        raise Failed("a pipelined answer has another body")

    def get(self, path, status, method="GET", **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = self.proxy.request(method, path, headers=headers)
        if reply.status != status:
            raise Failed(f"{method} {path} answered {reply.status}: {reply.body[:300]}")
        return reply.body

    # --- hostile ---

    def odd_head(self, chance):
        head = chance.choice([
            "GET / HTTP/9.9\r\n\r\n", "hello\r\n\r\n", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n X: folded\r\n\r\n", "\x16\x03\x01\x00\xa5\x01\x00\r\n"])
        self.refused(head.encode("latin-1"))

    def large_head(self, _):
        self.refused(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000 + b"\r\n\r\n")

    def refused(self, data):
        with connect(self.proxy) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
            first = connection.recv(12)
            # A TLS client gets a TLS alert.
            alert = data.startswith(b"\x16\x03") and first.startswith(b"\x15\x03")
            if not alert and not first.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")):
                raise Failed(f"{data[:60]} was answered with {first}")

    def half_a_head(self, chance):
        connection = connect(self.proxy)
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: "[:chance.randint(1, 30)])
        self.leave(connection, chance)

    def endless_upload(self, chance):
        connection = connect(self.proxy)
        path = chance.choice(["/healthz", "/v2/UPPER/blobs/uploads/"])
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000000\r\n\r\n"
        connection.sendall(head.encode() + bytes(100_000))
        if not connection.recv(12).startswith(b"HTTP/1.1 4"):
            raise Failed("an endless upload was not refused early")
        self.leave(connection, chance)

    def broken_upload(self, chance):
        connection = connect(self.proxy)
        framing = chance.choice(["Content-Length: 100000\r\n\r\n",
                                 "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX\r\n"])
        head = f"POST /v2/team/load/blobs/uploads/ HTTP/1.1\r\nHost: a\r\n{framing}"
        connection.sendall(head.encode() + b"hello")
        self.leave(connection, chance)

    def reset_in_a_blob(self, chance):
        connection = connect(self.proxy)
        head = f"GET /v2/team/load/blobs/{self.big} HTTP/1.1\r\nHost: a\r\n\r\n"
        connection.sendall(head.encode())
        connection.recv(chance.randint(1, 65536))
        self.leave(connection, chance)

    def only_a_connection(self, chance):
        self.leave(connect(self.proxy), chance)

    def leave(self, connection, chance):
        if chance.random() < 0.5:
            reset(connection)
        else:
            connection.close()


def run_mixed(mixed, count, seed):
    """So many requests, by threads; each thread's are the same for the same seed."""
    def some(number):
        chance = random.Random(f"{seed}-{number}")
        for _ in range(count // THREADS):
            mixed.one(chance)

    with contextlib.ExitStack() as stack:
        for number in range(THREADS):
            stack.enter_context(Watcher(lambda number=number: some(number)))


def soak(bench, upstream, count, seed, tls=None):
    """Resident memory in KiB before and after so many mixed requests, and what it took. Fails when
    descriptors or threads stay."""
    proxy = door(bench, upstream, tls)
    mixed = Mixed(bench, upstream, proxy)
    before = counts(proxy)
    # What is filled once stays: buffers of the allocator, the cache's memory of names.
    run_mixed(mixed, max(count // 20, 2000), f"warm-up-{seed}")
    wait_settled(proxy, before)
    resident = proxy.process.status("VmRSS")
    begin = time.monotonic()
    run_mixed(mixed, count, seed)
    seconds = time.monotonic() - begin
    wait_settled(proxy, before)
    after = proxy.process.status("VmRSS")
    proxy.process.stop()
    return resident, after, seconds


def check_growth(resident, after):
    """Fails when memory did not end where it began."""
    if after > resident * (1 + GROWTH_MAX):
        raise Failed(f"resident memory grew from {resident} to {after} KiB")


def main():
    """Prints every figure; the exit code tells whether the bounds were kept."""
    end_on_signals()
    count, seed = int(os.environ.get("REQUESTS") or 100_000), os.environ.get("SEED") or "1"
    only = [word for word in sys.argv[1:] if not word.startswith("--")]
    kept = []

    def report(what, value, unit, bound=None):
        verdict = "" if bound is None else f"  bound {bound:g} {unit}"
        print(f"{what:<58} {value:8.1f} {unit}{verdict}", flush=True)
        kept.append(bound is None or value < bound)

    with Bench() as bench:
        tls = bench.authority() if "--tls" in sys.argv else None
        print(f"proxy {proxy_command()[0]}, {'TLS' if tls else 'plain'}")
        upstream = cached.Upstream(bench, "files")
        if not only or "readers" in only:
            health, factor, peak, cut = slow_readers(bench, upstream, tls)
            what = f"{READERS} clients at {READER_RATE} bytes/s for {HOLD_SECONDS} s:"
            print(what)
            report("  slowest /healthz", health, "ms", HEALTH_MS_MAX)
            report("  pull beside them, alone = 1", factor, "", PULL_FACTOR_MAX)
            report("  peak resident memory", peak, "MB", RESIDENT_MAX_MB)
            report(f"  one at {TOO_SLOW_RATE} bytes/s is cut after", cut or 1e9, "s", HOLD_SECONDS)
        for mode in MODES:
            if not only or "slowhttptest" in only:
                health, refused = slow_http(bench, upstream, mode, tls)
                report(f"slowest /healthz, slowhttptest {mode}", health, "ms", HEALTH_MS_MAX)
                report("  found unavailable by the tool itself", float(refused), "", 0.5)
        if not only or "memory" in only:
            for kind, kib in kib_per_connection(bench, upstream, tls).items():
                report(f"resident memory of a connection, {kind}", kib, "KiB")
        if not only or "soak" in only:
            resident, after, seconds = soak(bench, upstream, count, seed, tls)
            report(f"resident memory before {count} mixed requests", resident / 1024, "MB")
            bound = resident / 1024 * (1 + GROWTH_MAX)
            report(f"  after them ({count / seconds:.0f} a second)", after / 1024, "MB", bound)
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
