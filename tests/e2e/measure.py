#!/usr/bin/env python3
"""Bounds of the proxy that need no rival: resident memory of a 300 MB pull, /healthz under three loads,
and 16 clients of one cold blob. What others do in its place is measured by `make bench`.

Run by `make measure`; each figure is the median of 5 runs, with its bound beside it. The checks use
the same loads at ten times the bounds, since a time on a shared machine says little.
"""

import contextlib
import hashlib
import shutil
import socket
import statistics
import sys
import time

from images import MIB, Layout
from parts import Bench, Failed, end_on_signals, random_bytes

RUNS = 5
RESIDENT_MAX_MB = 64
HEALTH_SECONDS_MAX = 1.0

# 16 clients pull one cold blob through an upstream of 40 MB/s, beside one client.
CROWD = 16
CROWD_BYTES = 120 * 1000 * 1000
CROWD_RATE = 40 * 1000 * 1000
CROWD_FACTOR_MAX = 1.2

# What the loads leave behind never ends by itself, so a drain would only wait.
SHORT_GRACE = {"SHUTDOWN_GRACE": "1s"}


class BlackHole:
    """An upstream that takes connections and never answers."""

    def __enter__(self):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        # The kernel completes handshakes up to the backlog; nobody ever accepts or reads.
        self.socket.listen(1024)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        return self

    def __exit__(self, *_):
        self.socket.close()


def connect(proxy):
    """A raw connection to the proxy."""
    return socket.create_connection(("127.0.0.1", proxy.port), 30)


def half_open(proxy):
    """300 connections with half a head each."""
    for number in range(300):
        connection = connect(proxy)
        connection.sendall(f"GET /v2/half-{number} HTTP/1.1\r\nHost: x\r\nX-Half: ".encode())
        yield connection


def stalled_uploads(proxy):
    """100 uploads that promise 1 MB, send 1 KB and then stall."""
    for number in range(100):
        reply = proxy.request("POST", f"/v2/stall/{number}/blobs/uploads/")
        if reply.status != 202:
            raise Failed(f"POST of upload {number} answered {reply.status}: {reply.body}")
        target = reply.getheader("Location").removeprefix(proxy.url)
        head = f"PATCH {target} HTTP/1.1\r\nHost: {proxy.address}\r\n"
        head += "Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n"
        connection = connect(proxy)
        connection.sendall(head.encode() + bytes(1000))
        yield connection


def waiting_requests(proxy):
    """100 pulls whose upstream never answers."""
    for number in range(100):
        connection = connect(proxy)
        head = f"GET /v2/hole/{number}/manifests/1 HTTP/1.1\r\nHost: {proxy.address}\r\n\r\n"
        connection.sendall(head.encode())
        yield connection


def health_under(proxy, load, samples):
    """Seconds that /healthz takes, `samples` times, while `load` lasts."""
    with contextlib.ExitStack() as stack:
        for connection in load(proxy):
            stack.enter_context(connection)
        time.sleep(0.5)
        seconds = []
        for _ in range(samples):
            begin = time.monotonic()
            status = proxy.request("GET", "/healthz").status
            seconds.append(time.monotonic() - begin)
            if status != 200:
                raise Failed(f"/healthz answered {status} under {load.__name__}")
        return seconds


def pull_blobs(proxy, repository, layout, tag):
    """Pulls every blob of an image, as clients do: three at a time would only share the link."""
    for digest in layout.blobs(layout.tags[tag]["digest"])[1:]:
        connection = connect(proxy)
        head = f"GET /v2/{repository}/blobs/{digest} HTTP/1.1\r\nHost: {proxy.address}\r\n"
        connection.sendall(head.encode() + b"Connection: close\r\n\r\n")
        with connection, connection.makefile("rb") as stream:
            if b" 200" not in stream.readline():
                raise Failed(f"GET of blob {digest} was not answered with 200")
            while stream.readline() not in (b"\r\n", b""):
                pass
            got = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        if got != digest:
            raise Failed(f"blob {digest} arrived as {got}")


def resident_mb(fixtures, rig):
    """Peak resident memory of a fresh proxy that hands out 300 MB, and the seconds it took."""
    proxy = fixtures.bench.proxy(rig.env, name="proxy-resident")
    begin = time.monotonic()
    pull_blobs(proxy, "team/big", fixtures.measured, "big")
    seconds = time.monotonic() - begin
    peak = proxy.process.status("VmHWM") / 1024
    proxy.process.stop()
    return peak, seconds


def health_ms(fixtures, load, env):
    """The slowest of 5 /healthz of a fresh proxy under `load`."""
    proxy = fixtures.bench.proxy({**env, **SHORT_GRACE}, name="proxy-health")
    slowest = max(health_under(proxy, load, samples=5)) * 1000
    proxy.process.stop()
    return slowest


def crowd(bench, upstream):
    """The slowest of 16 clients of a cold blob as a multiple of a single one, and the proxy's peak
    resident memory in MB."""
    import cached

    seconds, peaks = [], []
    for count in [1, CROWD]:
        digest = upstream.seed_blob("team/crowd", random_bytes(CROWD_BYTES))
        cache = bench.fresh("cache-crowd")
        proxy = upstream.proxy(cache)
        gets = upstream.layers.seen()["gets"]
        seconds.append(cached.slowest(proxy, "team/crowd", digest, CROWD_BYTES, count))
        gets = upstream.layers.seen()["gets"] - gets
        if gets != 1:
            raise Failed(f"{gets} GETs upstream for one blob and {count} clients")
        peaks.append(proxy.process.status("VmHWM") / 1024)
        proxy.process.stop()
        shutil.rmtree(cache)
    return seconds[1] / seconds[0], peaks[1]


def cache_figures(bench):
    """Prints the figures of the cache; whether each bound was kept."""
    import cached

    upstream = cached.Upstream(bench, "files")
    upstream.layers.rate(CROWD_RATE)
    runs = [crowd(bench, upstream) for _ in range(RUNS)]
    upstream.layers.rate(0)
    what = f"slowest of {CROWD} clients of a cold 120 MB blob"
    kept = [report(f"{what}, single = 1", [factor for factor, _ in runs], "", CROWD_FACTOR_MAX, 2)]
    peaks = [peak for _, peak in runs]
    kept.append(report("peak resident memory of that", peaks, "MB", RESIDENT_MAX_MB))
    return kept


def report(what, values, unit, bound, digits=1):
    """One line: median, spread, bound; true when the median keeps the bound."""
    median = statistics.median(values)
    spread = f"({min(values):.{digits}f} to {max(values):.{digits}f})"
    verdict = "" if bound is None else f"  bound {bound:g} {unit}"
    print(f"{what:<58} {median:8.{digits}f} {unit} {spread}{verdict}", flush=True)
    return bound is None or median < bound


def main():
    """Prints every figure; the exit code tells whether the bounds were kept."""
    import checks

    end_on_signals()
    with Bench() as bench:
        fixtures = checks.Fixtures(bench)
        rig = fixtures.files
        fixtures.measured = Layout(bench.path("measured"))
        fixtures.measured.add_image("big", [100 * MIB] * 3)
        rig.seed(fixtures.measured, "big", "team/big:1")

        print(f"medians of {RUNS} runs (smallest to largest), proxy {checks.proxy_command()[0]}")
        kept = []
        pulls = [resident_mb(fixtures, rig) for _ in range(RUNS)]
        peaks = [peak for peak, _ in pulls]
        kept.append(report("peak resident memory, 300 MB pull", peaks, "MB", RESIDENT_MAX_MB))
        rates = [300 / seconds for _, seconds in pulls]
        report("rate of that pull (the stand-in for S3 is Python)", rates, "MB/s", None)
        with BlackHole() as hole:
            hole_env = {**rig.env, "ECR": hole.url}
            for what, load, env in [
                ("slowest /healthz, 300 half-open connections", half_open, rig.env),
                ("slowest /healthz, 100 stalled uploads", stalled_uploads, rig.env),
                ("slowest /healthz, 100 requests to a black hole", waiting_requests, hole_env),
            ]:
                values = [health_ms(fixtures, load, env) for _ in range(RUNS)]
                kept.append(report(what, values, "ms", HEALTH_SECONDS_MAX * 1000))
        kept += cache_figures(bench)
        return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
