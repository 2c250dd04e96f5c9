"""What the bench measures. Owns the work, its figures and their aims; a work is a function that has one
contestant do something once.

An aim is `≤` or `≥`, a number, and what our figure is a ratio to: a contestant, another work of ours,
or nothing when the figure itself is meant.
"""

import http.client
import os
import socket
import time
import typing
import urllib.parse

import generator
from contestants import REPOSITORY, START, Contestant, fill_cache, our_settings
from generator import Door
from parts import Failed, free_port, proxy_command

UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def size_of(text):
    """Bytes of a size such as `126m`."""
    return int(text.rstrip("kmg")) * UNITS.get(text[-1], 1)


MIB, GIB = 1 << 20, 1 << 30
# Bytes of the large blob; a small one is for a try, with less of everything else.
SIZE = size_of((os.environ.get("SIZE") or "126m").lower())
TRY = SIZE < 32 * MIB
# A cached blob is pulled at least so often in a round.
PULLS = 8
# The layers of one image, pulled over so many connections.
LAYERS, LAYER_BYTES, LAYER_CLIENTS = 50 if TRY else 500, 20_000, 4
# Of each run of wrk and ab; it is the rounds that make a figure steady.
SECONDS = 1
TAGS, TAG_SECONDS = 200, 1
PUSH = SIZE if TRY else 300 * MIB
CHUNK = 10 * MIB
# Blobs in the cache at a start; BLOBS=1000000 adds that row, and a minute or two.
COUNTS = sorted({1000, *([] if TRY else [100_000]), *map(int, os.environ.get("BLOBS", "").split())})
ASKED_BLOBS = 1000


class Metric(typing.NamedTuple):
    """A row of the table."""

    name: str
    unit: str
    aims: tuple = ()


class Work(typing.NamedTuple):
    """What to measure: a function of the lab and a contestant's name, which yields a figure for each
    metric."""

    name: str
    metrics: dict
    names: tuple
    function: typing.Callable


WORKS = []
EVERYBODY = ("ours", "nginx", "pass", "registry")
CACHES = ("ours", "nginx", "registry")


def work(name, names, **metrics):
    """Marks a function as work for these contestants; a metric is its name, its unit and its aims."""
    def mark(function):
        named = {key: Metric(what, unit, tuple(aims)) for key, (what, unit, *aims) in metrics.items()}
        WORKS.append(Work(name, named, names, function))
        return function

    return mark


def blob_path(digest):
    return f"/v2/{REPOSITORY}/blobs/{digest}"


def clients_of(count):
    return f"{count} client{'s' if count > 1 else ''}"


class Lab:
    """The upstream, the contestants that run, and the blobs that they know."""

    def __init__(self, bench, upstream):
        self.bench, self.upstream = bench, upstream
        self.running, self.blobs, self.warmed = {}, {}, set()
        self.generator = generator.Generator()
        self.round = 0

    def contestant(self, name, **settings):
        """A contestant with these settings, started when it is first wanted."""
        key = (name, *settings.items())
        if key not in self.running:
            self.running[key] = START[name](self.bench, self.upstream, **settings)
        return self.running[key]

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
        # What it does after the last byte counts, too.
        time.sleep(0.03)
        return pulled, contestant.cpu() - before

    def hits(self, contestant, shares, tls=False):
        """Pulls what must be in the cache; the first time, one pull before it puts it there."""
        key = (contestant.port, shares[0][0])
        if key not in self.warmed:
            self.pull(contestant, [sum(shares, [])] if len(shares) < 9 else shares[:1], tls)
            self.warmed.add(key)
            time.sleep(0.2)
        before = self.upstream.asked()
        result = self.pull(contestant, shares, tls)
        if self.upstream.asked() != before:
            raise Failed("what should be cached was fetched")
        return result

    def close(self):
        self.generator.close()
        self.upstream.close()


# === blobs ===


def cached_blob(lab, name, clients, tls):
    contestant = lab.contestant(name, **({"tls": True} if tls and name == "ours" else {}))
    shares = [[lab.blob("large", SIZE)] * max(1, PULLS // clients)] * clients
    if name == "pass":
        pulled, cpu = lab.pull(contestant, shares, tls)
    else:
        pulled, cpu = lab.hits(contestant, shares, tls)
    per_gib = GIB / pulled.bytes * 1e3
    return {"rate": pulled.bytes / pulled.seconds / MIB, "cpu": cpu * per_gib,
            "clients": pulled.client_cpu * per_gib}


def cached_blob_work(clients, tls):
    names = ("ours", "nginx") if tls or clients == 64 else EVERYBODY if clients == 1 else CACHES
    metrics = {"rate": ("throughput", "MiB/s", "≥ 1 nginx"),
               "cpu": ("CPU", "ms/GiB", "≤ 1 nginx" if tls else "≤ 0.6 nginx")}
    if clients == 1:
        metrics["clients"] = ("CPU of the client", "ms/GiB")
    work(f"cached blob, {'TLS' if tls else 'plain'}, {clients_of(clients)}", names, **metrics)(
        lambda lab, name: cached_blob(lab, name, clients, tls))


for _clients in (1, 4, 64):
    cached_blob_work(_clients, False)
    cached_blob_work(_clients, True)


def cold_blob(lab, name, clients):
    """A blob that nobody has yet. What was left to be written before would be in the way."""
    contestant, path = lab.contestant(name), lab.blob(f"cold {clients} {lab.round}", SIZE)
    os.sync()
    before = lab.upstream.asked()
    pulled, cpu = lab.pull(contestant, [[path]] * clients)
    return {"first": pulled.first * 1e3, "wall": pulled.seconds * 1e3, "cpu": cpu * 1e3,
            "gets": lab.upstream.asked() - before}


@work("cold blob, 1 client", EVERYBODY,
      first=("first byte", "ms", "≤ 1.1 nginx"), wall=("total", "ms", "≤ 1.15 nginx"),
      cpu=("CPU", "ms", "≤ 1.5 nginx"), gets=("GETs upstream", ""))
def cold_blob_alone(lab, name):
    return cold_blob(lab, name, 1)


@work("cold blob, 16 clients", ("ours", "nginx"),
      first=("first byte of the last", "ms"), wall=("total", "ms", "≤ 1.15 cold blob, 1 client"),
      cpu=("CPU", "ms"), gets=("GETs upstream", "", "≤ 1"))
def cold_blob_crowd(lab, name):
    return cold_blob(lab, name, 16)


def layers(lab, key):
    """Paths of small layers, for each client."""
    paths = [lab.blob(f"layer {key} {number}", LAYER_BYTES) for number in range(LAYERS)]
    return [paths[at::LAYER_CLIENTS] for at in range(LAYER_CLIENTS)]


@work(f"{LAYERS} layers of 20 KB, cold", EVERYBODY,
      wall=("total", "ms", "≤ 1.2 nginx"), cpu=("CPU", "ms"))
def small_layers_cold(lab, name):
    contestant, shares = lab.contestant(name), layers(lab, lab.round)
    os.sync()
    pulled, cpu = lab.pull(contestant, shares)
    return {"wall": pulled.seconds * 1e3, "cpu": cpu * 1e3}


@work(f"{LAYERS} layers of 20 KB, warm", CACHES,
      wall=("total", "ms", "≤ 1 nginx"), cpu=("CPU", "ms"), p99=("p99 of one", "ms"))
def small_layers_warm(lab, name):
    """Over and over, by wrk: Python's clients are slower than nginx."""
    contestant, shares = lab.contestant(name), layers(lab, "warm")
    lab.hits(contestant, shares)
    rate, cpu = ask_paths(contestant, sum(shares, []), LAYER_CLIENTS)
    return {"wall": LAYERS / rate.per_second * 1e3, "cpu": cpu * LAYERS / 1e3, "p99": rate.p99}


def ask_paths(contestant, paths, connections):
    """Paths in turns; what wrk found, and microseconds of processor time for each."""
    before = contestant.cpu()
    rate = generator.wrk(f"http://127.0.0.1:{contestant.port}/", connections, SECONDS, paths)
    return rate, (contestant.cpu() - before) / rate.requests * 1e6


# === manifests ===


def ask_manifest(lab, contestant, tool, connections):
    """A manifest by its digest, for some seconds."""
    path = f"/v2/{REPOSITORY}/manifests/{lab.upstream.manifest}"
    lab.pull(contestant, [[path]])
    before = contestant.cpu()
    rate = tool(f"http://127.0.0.1:{contestant.port}{path}", connections, SECONDS)
    return {"rate": rate.per_second, "p50": rate.p50, "p99": rate.p99,
            "cpu": (contestant.cpu() - before) / rate.requests * 1e6}


def manifest_work(method, connections):
    tool = generator.wrk if method == "GET" else generator.heads
    counts = method == "GET" and connections == 16
    names = EVERYBODY if counts else ("ours", "nginx")
    work(f"cached manifest {method}, {connections} connection{'s' if connections > 1 else ''}", names,
         rate=("requests", "1/s", *(["≥ 0.6 nginx", "≥ 3 registry"] if counts else [])),
         p50=("p50", "ms"),
         p99=("p99", "ms", *(["≤ 5"] if method == "GET" and connections == 256 else [])),
         cpu=("CPU", "µs/request"))(
        lambda lab, name: ask_manifest(lab, lab.contestant(name), tool, connections))


for _connections in (1, 16, 256):
    manifest_work("GET", _connections)
    manifest_work("HEAD", _connections)


@work("paced manifest GET, 256 connections, 10/s each", ("ours", "nginx"),
      p50=("p50", "ms"), p99=("p99", "ms", "≤ 5"), cpu=("CPU", "µs/request"))
def paced_manifest(lab, name):
    def paced(url, connections, seconds):
        return generator.wrk(url, connections, seconds, pause_ms=100)

    return ask_manifest(lab, lab.contestant(name), paced, 256)


@work("tag that has to be asked for again", CACHES, wall=("time", "ms/tag"), cpu=("CPU", "µs/tag"))
def revalidate_tags(lab, name):
    settings = {"ours": {"CACHE_TAG_TTL": f"{TAG_SECONDS}s"}, "nginx": {"valid": f"{TAG_SECONDS}s"}}
    contestant = lab.contestant(name, **settings.get(name, {}))
    paths = [f"/v2/{REPOSITORY}/manifests/tag-{number}" for number in range(TAGS)]
    if lab.round == 0:
        lab.pull(contestant, [paths])
    # nginx counts in whole seconds.
    time.sleep(2 * TAG_SECONDS + 0.1)
    before = lab.upstream.asked("v2")
    pulled, cpu = lab.pull(contestant, [paths])
    if lab.upstream.asked("v2") - before < TAGS:
        raise Failed(f"{name} did not ask for each tag again")
    return {"wall": pulled.seconds / TAGS * 1e3, "cpu": cpu / TAGS * 1e6}


# === without a cache ===

OUR_PASS = {"token": True, "CACHE_DIR": "off"}


@work("token only, blob, 1 client", ("ours", "pass"),
      rate=("throughput", "MiB/s"), cpu=("CPU", "ms/GiB"))
def pass_blob(lab, name):
    contestant = lab.contestant(name, **(OUR_PASS if name == "ours" else {}))
    pulled, cpu = lab.pull(contestant, [[lab.blob("large", SIZE)] * 4])
    return {"rate": pulled.bytes / pulled.seconds / MIB, "cpu": cpu / pulled.bytes * GIB * 1e3}


@work("token only, manifest GET, 16 connections", ("ours", "pass"),
      rate=("requests", "1/s"), p50=("p50", "ms"), p99=("p99", "ms"), cpu=("CPU", "µs/request"))
def pass_manifest(lab, name):
    contestant = lab.contestant(name, **(OUR_PASS if name == "ours" else {}))
    return ask_manifest(lab, contestant, generator.wrk, 16)


def push(lab, name, chunk):
    """An upload in one PUT, or in PATCHes of `chunk` bytes."""
    contestant = lab.contestant(name)
    digest, data = lab.upstream.make_blob(PUSH)
    os.sync()
    connection = http.client.HTTPConnection("127.0.0.1", contestant.port, timeout=60)
    before, begin = contestant.cpu(), time.monotonic()
    place = send(connection, "POST", f"/v2/{REPOSITORY}/blobs/uploads/", b"", 202)
    rest = memoryview(data)
    while chunk and rest:
        place = send(connection, "PATCH", place, rest[:chunk], 202)
        rest = rest[chunk:]
    send(connection, "PUT", f"{place}?digest={digest}", rest, 201)
    seconds = time.monotonic() - begin
    time.sleep(0.03)
    connection.close()
    return {"rate": PUSH / seconds / MIB, "cpu": (contestant.cpu() - before) / PUSH * GIB * 1e3}


def send(connection, method, target, body, status):
    """One request of an upload; the path where it goes on."""
    connection.request(method, target, body, {"Content-Type": "application/octet-stream"})
    reply = connection.getresponse()
    said = reply.read()
    if reply.status != status:
        raise Failed(f"{method} {target} was answered with {reply.status}: {said[:300]}")
    return urllib.parse.urlsplit(reply.getheader("Location")).path


PUSHED = {"rate": ("throughput", "MiB/s"), "cpu": ("CPU", "ms/GiB")}
work(f"push of {PUSH // MIB} MB in one piece", ("ours", "pass"), **PUSHED)(
    lambda lab, name: push(lab, name, 0))
work(f"push of {PUSH // MIB} MB in chunks of {CHUNK // MIB} MB", ("ours", "pass"), **PUSHED)(
    lambda lab, name: push(lab, name, CHUNK))


# === memory ===


def open_connections(contestant, count, path):
    """Connections that have asked for `path` and read the beginning of the answer."""
    opened = [socket.create_connection(("127.0.0.1", contestant.port), 30) for _ in range(count)]
    for connection in opened:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    for connection in opened:
        if b" 200 " not in connection.recv(4096)[:15]:
            raise Failed(f"{path} was not answered with 200")
    return opened


@work("memory", ("ours", "nginx"), idle=("idle", "MB", "≤ 6"),
      slow=("100 slow transfers", "MB", "≤ 12"), kept=("1,000 idle connections", "MB", "≤ 40"))
def memory(lab, name):
    contestant = START[name](lab.bench, lab.upstream)
    found = {}
    time.sleep(0.5)
    found["idle"] = contestant.resident()
    path = lab.blob("large", SIZE)
    lab.pull(contestant, [[path]])
    for key, count, target in [("slow", 100, path), ("kept", 1000, "/v2/")]:
        opened = open_connections(contestant, count, target)
        time.sleep(0.5)
        found[key] = contestant.resident()
        for connection in opened:
            connection.close()
    contestant.process.stop()
    return found


# === a full cache ===


def full_cache(lab, count):
    """The folder of a cache of so many blobs, and the paths of some of them all over it."""
    key = f"cache of {count}"
    if key not in lab.blobs:
        lab.blobs[key] = fill_cache(lab.bench, lab.upstream, count)
    folder, digests = lab.blobs[key]
    return folder, [blob_path(digest) for digest in digests[::len(digests) // ASKED_BLOBS]]


def start_on(lab, folder):
    """Starts the proxy on a cache; it, and the seconds until it answers as ready."""
    port, begin = free_port(), time.monotonic()
    settings = our_settings(lab.upstream, folder, LISTEN_PORT=str(port), LOG_LEVEL="WARN")
    process = lab.bench.start("ours-full", proxy_command(), settings)
    while time.monotonic() < begin + 60:
        try:
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if b" 200 " in connection.recv(4096)[:15]:
                    return Contestant(process, port), time.monotonic() - begin
        except ConnectionRefusedError:
            time.sleep(0.0003)
    raise Failed("the proxy did not become ready in 60 s")


def wait_idle(contestant):
    """Waits until it uses no processor: what it does after a start is done."""
    for _ in range(200):
        before = contestant.cpu()
        time.sleep(0.3)
        if contestant.cpu() - before < 0.003:
            return
    raise Failed("the proxy is never idle after its start")


def full_cache_figures(lab, count):
    """A start on so many blobs, and hits among them; beside it hits among the fewest, so that the
    two are of one moment."""
    folder, paths = full_cache(lab, count)
    contestant, seconds = start_on(lab, folder)
    lab.pull(contestant, [paths])
    during, _ = ask_paths(contestant, paths, 16)
    wait_idle(contestant)
    after, cpu = ask_paths(contestant, paths, 16)
    found = {"start": seconds * 1e3, "cpu": cpu, "p99": after.p99, "sweep": during.p99 - after.p99}
    if count > COUNTS[0]:
        if not hasattr(lab, "few_blobs"):
            full_cache_figures(lab, COUNTS[0])
        few = lab.few_blobs
        found["more"] = cpu / ask_paths(few, full_cache(lab, COUNTS[0])[1], 16)[1]
        contestant.process.stop()
    else:
        lab.few_blobs = contestant
    return found


for _count in COUNTS:
    _more = {"more": ("the same, to that with 1,000", "", "≤ 1.1")} if _count > COUNTS[0] else {}
    work(f"{_count:,} cached blobs", ("ours",),
         start=("start to first answer", "ms", "≤ 20"), cpu=("CPU", "µs/hit"), **_more,
         p99=("p99", "ms"), sweep=("p99 while it counts them, more", "ms", "≤ 2"))(
        lambda lab, name, count=_count: full_cache_figures(lab, count))


@work("binary", ("ours",), size=("size", "MiB", "≤ 4.2"))
def binary(lab, name):
    return {"size": os.path.getsize(proxy_command()[0]) / MIB}
