#!/usr/bin/env python3
"""The bench: the proxy beside nginx and distribution's registry, on one upstream, in one run.

  benches/bench.py                          everything, 7 rounds
  ROUNDS=1 SIZE=4m WORK="cold" benches/bench.py   a try: only work with such words in its name
  PROXY_BIN=target/debug/aws-ecr-proxy …    another binary than dist/aws-ecr-proxy

Each figure is the median of the rounds; contestants take turns, in the other order every second round.
A ratio is the median of the rounds' ratios, ours to theirs. Owns what is measured, the bounds and the
table.
"""

import os
import statistics
import sys
import time
import typing

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
sys.dont_write_bytecode = True

import generator  # noqa: E402  first: it chooses the cipher
import contestants  # noqa: E402
from contestants import REPOSITORY  # noqa: E402
from generator import Door  # noqa: E402
from parts import Bench, Failed, end_on_signals, proxy_command  # noqa: E402

UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
ROUNDS = int(os.environ.get("ROUNDS") or 7)
# Bytes of the large blob.
SIZE_TEXT = (os.environ.get("SIZE") or "126m").lower()
SIZE = int(SIZE_TEXT.rstrip("kmg")) * UNITS.get(SIZE_TEXT[-1], 1)
SMALL = SIZE < 32 << 20
GIB = 1 << 30
# A cached blob is pulled at least so often in a round.
PULLS = 8
# The clients of one image.
LAYERS, LAYER_BYTES, LAYER_CLIENTS = 50 if SMALL else 500, 20_000, 4
WRK_SECONDS = 1 if SMALL else 2


class Metric(typing.NamedTuple):
    """One row of the table: its name, unit, and the bound of the ratio to nginx, if there is one."""

    name: str
    unit: str
    at_most: float | None = None
    at_least: float | None = None


class Work(typing.NamedTuple):
    """Something to measure: a function of the lab and a contestant's name that yields a figure for
    each metric."""

    name: str
    metrics: dict
    names: tuple
    function: typing.Callable


WORKS = []
ALL = ("ours", "nginx", "registry")


def work(name, names, **metrics):
    """Marks a function as work for these contestants."""
    def mark(function):
        WORKS.append(Work(name, metrics, names, function))
        return function

    return mark


class Lab:
    """The upstream, the contestants that run, and the blobs that they know."""

    START = {
        "ours": contestants.start_ours,
        "ours with TLS": lambda bench, upstream: contestants.start_ours(bench, upstream, tls=True),
        "nginx": contestants.start_nginx_proxy,
        "registry": contestants.start_registry,
    }

    def __init__(self, bench):
        self.bench, self.running, self.blobs = bench, {}, {}
        self.upstream = contestants.Upstream(bench)
        self.generator = generator.Generator()
        self.round = 0

    def contestant(self, name):
        """A contestant, started when it is first wanted."""
        if name not in self.running:
            self.running[name] = self.START[name](self.bench, self.upstream)
        return self.running[name]

    def blob(self, key, size):
        """The path of a blob that is the same for all who ask for this key."""
        if key not in self.blobs:
            self.blobs[key] = self.upstream.add_blob(size)
        return blob_path(self.blobs[key])

    def pull(self, contestant, shares, tls=False):
        """Pulls; what the clients got and the contestant's seconds of processor time."""
        door = Door(contestant.tls_port, self.upstream.tls.ca) if tls else Door(contestant.port)
        before = contestant.cpu()
        pulled = self.generator.pull(door, shares)
        # What it does after the last byte.
        time.sleep(0.03)
        return pulled, contestant.cpu() - before

    def hits(self, contestant, shares, tls=False):
        """Pulls what must be in the cache already; one pull before it puts it there."""
        before = self.upstream.gets()
        pulled, cpu = self.pull(contestant, shares, tls)
        if self.upstream.gets() != before:
            raise Failed("what should be cached was fetched")
        return pulled, cpu

    def warm(self, contestant, key, paths, tls=False):
        """Pulls once, the first time that it is asked to."""
        warmed = contestant.__dict__.setdefault("warmed", set())
        if key not in warmed:
            self.pull(contestant, [paths], tls)
            warmed.add(key)
            time.sleep(0.2)

    def close(self):
        self.generator.close()
        self.upstream.close()


def blob_path(digest):
    return f"/v2/{REPOSITORY}/blobs/{digest}"


# === work ===


def cached_blob(lab, name, clients, tls):
    """A blob that is cached, by so many clients at once."""
    contestant = lab.contestant("ours with TLS" if tls and name == "ours" else name)
    path = lab.blob("large", SIZE)
    lab.warm(contestant, "large", [path], tls)
    pulls = max(1, PULLS // clients)
    pulled, cpu = lab.hits(contestant, [[path] * pulls] * clients, tls)
    return {"rate": pulled.bytes / pulled.seconds / (1 << 20), "cpu": cpu / pulled.bytes * GIB * 1e3,
            "clients": pulled.client_cpu / pulled.bytes * GIB * 1e3}


for _clients in (1, 4, 64):
    for _tls in (False, True):
        _title = f"cached blob, {'TLS' if _tls else 'plain'}, {_clients} client{'s'[:_clients > 1]}"
        work(_title, ("ours", "nginx") if _tls else ALL,
             rate=Metric("throughput", "MiB/s", at_least=1.0),
             cpu=Metric("CPU", "ms/GiB", at_most=1.0 if _tls else 0.6),
             clients=Metric("CPU of the clients", "ms/GiB"))(
            lambda lab, name, clients=_clients, tls=_tls: cached_blob(lab, name, clients, tls))


def cold_blob(lab, name, clients):
    """A blob that nobody has yet, by so many clients at once."""
    contestant = lab.contestant(name)
    path = lab.blob(f"cold {clients} {lab.round}", SIZE)
    # What the one before left to be written would be in the way.
    os.sync()
    before = lab.upstream.gets()
    pulled, cpu = lab.pull(contestant, [[path]] * clients)
    return {"first": pulled.first * 1e3, "wall": pulled.seconds * 1e3, "cpu": cpu * 1e3,
            "gets": lab.upstream.gets() - before}


@work("cold blob, 1 client", ALL,
      first=Metric("first byte", "ms", at_most=1.1), wall=Metric("total", "ms", at_most=1.15),
      cpu=Metric("CPU", "ms", at_most=1.5), gets=Metric("upstream GETs", ""))
def cold_blob_one(lab, name):
    return cold_blob(lab, name, 1)


@work("cold blob, 16 clients", ALL,
      first=Metric("first byte of the last client", "ms"), wall=Metric("total", "ms"),
      cpu=Metric("CPU", "ms"), gets=Metric("upstream GETs", ""))
def cold_blob_many(lab, name):
    return cold_blob(lab, name, 16)


def small_layers(lab, round_number):
    """Paths of the layers of a round, for each client."""
    paths = [lab.blob(f"layer {round_number} {number}", LAYER_BYTES) for number in range(LAYERS)]
    return [paths[at::LAYER_CLIENTS] for at in range(LAYER_CLIENTS)]


@work(f"{LAYERS} layers of 20 KB, cold", ALL,
      wall=Metric("total", "ms", at_most=1.2), cpu=Metric("CPU", "ms"))
def small_cold(lab, name):
    shares = small_layers(lab, lab.round)
    os.sync()
    pulled, cpu = lab.pull(lab.contestant(name), shares)
    return {"wall": pulled.seconds * 1e3, "cpu": cpu * 1e3}


@work(f"{LAYERS} layers of 20 KB, warm", ALL,
      wall=Metric("total", "ms", at_most=1.0), cpu=Metric("CPU", "ms"))
def small_warm(lab, name):
    contestant, shares = lab.contestant(name), small_layers(lab, "warm")
    lab.warm(contestant, "layers", sum(shares, []))
    pulled, cpu = lab.hits(contestant, shares)
    return {"wall": pulled.seconds * 1e3, "cpu": cpu * 1e3}


def manifest(lab, name, connections):
    """A cached manifest by its digest, over so many connections at once."""
    contestant = lab.contestant(name)
    path = f"/v2/{REPOSITORY}/manifests/{lab.upstream.manifest}"
    lab.warm(contestant, "manifest", [path])
    before = contestant.cpu()
    rate = generator.wrk(f"http://127.0.0.1:{contestant.port}{path}", connections, WRK_SECONDS)
    cpu = contestant.cpu() - before
    return {"rate": rate.per_second, "p50": rate.p50, "p99": rate.p99,
            "cpu": cpu / rate.requests * 1e6}


for _connections, _bound in ((1, None), (16, 0.6), (256, None)):
    work(f"cached manifest GET, {_connections} connection{'s'[:_connections > 1]}", ALL,
         rate=Metric("requests", "1/s", at_least=_bound), p50=Metric("p50", "ms"),
         p99=Metric("p99", "ms"), cpu=Metric("CPU", "µs/request"))(
        lambda lab, name, connections=_connections: manifest(lab, name, connections))


# === running ===


def measure(lab, chosen):
    """Runs work in rounds; its figures by contestant and metric."""
    figures = {name: {key: [] for key in chosen.metrics} for name in chosen.names}
    for lab.round in range(ROUNDS):
        order = chosen.names if lab.round % 2 == 0 else chosen.names[::-1]
        for name in order:
            for key, value in chosen.function(lab, name).items():
                figures[name][key].append(value)
    return figures


def rows_of(chosen, figures):
    """The rows of one work."""
    for key, metric in chosen.metrics.items():
        values = {name: statistics.median(figures[name][key]) for name in chosen.names}
        pairs = zip(figures["ours"][key], figures["nginx"][key])
        ratio = statistics.median(ours / theirs if theirs else float(ours != theirs) + 1
                                  for ours, theirs in pairs)
        bound, holds = "", ""
        if metric.at_most is not None:
            bound, holds = f"≤ {metric.at_most:g}", "yes" if ratio <= metric.at_most else "no"
        if metric.at_least is not None:
            bound, holds = f"≥ {metric.at_least:g}", "yes" if ratio >= metric.at_least else "no"
        yield [chosen.name, f"{metric.name} {metric.unit}".strip(), f"{ratio:.2f}", bound, holds,
               *(figure(values.get(name)) for name in ALL)]


def figure(value):
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


WIDTHS = (32, 30, 6, 7, 5, 9, 9, 9)


def show(row):
    """Prints a row while the rest is measured."""
    print("  ".join(f"{cell:<{width}}" if at < 2 else f"{cell:>{width}}"
                    for at, (cell, width) in enumerate(zip(row, WIDTHS))), flush=True)


def main():
    end_on_signals()
    wanted = (os.environ.get("WORK") or "").split()
    chosen = [w for w in WORKS if not wanted or any(word in w.name for word in wanted)]
    if not chosen:
        raise Failed(f"no work has {wanted} in its name: {', '.join(w.name for w in WORKS)}")
    print(f"# {proxy_command()[0]}, {ROUNDS} rounds, blob of {SIZE_TEXT}", flush=True)
    show(["work", "figure", "ratio", "bound", "holds", *ALL])
    with Bench() as bench:
        lab = Lab(bench)
        try:
            for one in chosen:
                for row in rows_of(one, measure(lab, one)):
                    show(row)
        finally:
            lab.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(f"benches/bench.py: {error}")
