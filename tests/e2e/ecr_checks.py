"""Every client against ECR's ways (`front.py`), pushing and pulling, in four modes: with the cache
and without, over plain HTTP and over TLS all the way.
"""

import functools
import hashlib
import json

from checks import RESIDENT_MAX_KIB, check, redirecting_files, want
from clients import ARCH, PUSHERS, Containerd, Skopeo
from images import MIB, Layout

OTHER_ARCH = "s390x"
DOCKER = "application/vnd.docker.distribution.manifest."
OCI = "application/vnd.oci.image."
MODES = [(tls, cached) for tls in (False, True) for cached in (False, True)]


class Stack:
    """A docker-registry that redirects, what makes it like ECR, and proxies before it."""

    def __init__(self, fixtures, tls):
        self.bench = bench = fixtures.bench
        self.tls = fixtures.authority if tls else None
        storage = bench.fresh("storage-ecr")
        self.layers = bench.layer_host(["--files", storage], self.tls)
        # Who may come in is for the front to say, which needs no bcrypt for it.
        config = {**redirecting_files(storage, self.layers), "auth": {}}
        self.front = bench.front(bench.registry(config), "--quirks", tls=self.tls)
        self.env = {**fixtures.aws.env(), "AWS_ENDPOINT_URL_ECR": self.front.url,
                    "ECR": self.front.url, "BLOB_HOSTS": self.layers.address}
        if tls:
            self.env["AWS_CA_BUNDLE"] = self.tls.ca

    def proxy(self, cached):
        """A new one, with a cache of its own."""
        cache = self.bench.fresh("cache-ecr") if cached else "off"
        return self.bench.proxy({**self.env, "CACHE_DIR": cache}, name="proxy-ecr", tls=self.tls)

    def downloads(self):
        """How many blobs were fetched from upstream so far."""
        return self.front.seen().get("GET blob", 0), self.layers.seen()["gets"]


@functools.cache
def stack(fixtures, tls):
    return Stack(fixtures, tls)


def mode_name(tls, cached):
    return f"{'tls' if tls else 'plain'}_{'cached' if cached else 'uncached'}"


def small_images(bench):
    layout = Layout(bench.fresh("layout"))
    layout.add_image("single", [MIB, 100_000], ARCH)
    layout.add_index("multi", [200_000, 1000], [ARCH, OTHER_ARCH])
    return layout


def in_registry(front, repository, digest):
    """Everything the registry holds of an image: each digest is that of the bytes that came."""
    body = front.manifest(repository, digest)
    found = "sha256:" + hashlib.sha256(body).hexdigest()
    want(found == digest, repository, "holds", found, "in place of", digest)
    manifest = json.loads(body)
    digests, config = {digest}, None
    for child in manifest.get("manifests", []):
        below, below_config = in_registry(front, repository, child["digest"])
        digests |= below
        if child["platform"]["architecture"] == ARCH:
            config = below_config
    for blob in [manifest[name] for name in ["config"] if name in manifest] + manifest.get(
            "layers", []):
        want(front.blob_exists(repository, blob["digest"]), repository, "lacks", blob["digest"])
        digests.add(blob["digest"])
    return digests, config or manifest.get("config", {}).get("digest")


class Trip:
    """A new proxy before a stack, and images that go through it and back."""

    def __init__(self, fixtures, tls, cached):
        self.bench, self.stack, self.cached = fixtures.bench, stack(fixtures, tls), cached
        self.mode = mode_name(tls, cached).replace("_", "-")
        self.ca = self.stack.tls.ca if tls else None
        self.proxy = self.stack.proxy(cached)

    def push(self, client, layout, tag, name, *, docker=False):
        """Pushes an image, and looks what the registry holds: its digest, all digests, and that of
        the configuration for this machine."""
        front = self.stack.front
        digest = client.push(self.bench, self.proxy.address, layout, tag, f"{name}:1",
                             ca=self.ca, docker=docker)
        got = front.manifest(name, "1")
        want("sha256:" + hashlib.sha256(got).hexdigest() == digest, name, "is not what was pushed")
        media_type = json.loads(got).get("mediaType", "")
        want(media_type.startswith(DOCKER if docker else OCI), name, "is", media_type)
        return digest, *in_registry(front, name, digest)

    def pull(self, client, name, digest, held, config, *, by_digest=False):
        """Pulls what was pushed. With a cache nothing of it comes from upstream."""
        before = self.stack.downloads()
        reference = f"{name}@{digest}" if by_digest else f"{name}:1"
        pulled = client.pull(self.bench, self.proxy.address, reference, ca=self.ca)
        want(config in pulled, client.name, reference, "lacks", config)
        want(client.name == "podman" or pulled <= held, reference, "brought", pulled - held)
        fetched = [after - first for first, after in zip(before, self.stack.downloads())]
        if self.cached:
            want(fetched == [0, 0], name, "was pushed through us and fetched again:", fetched)
        else:
            want(min(fetched) > 0, name, "came from nowhere:", fetched)

    def end(self):
        """What holds after each of them."""
        want(self.stack.layers.seen()["refused"] == 0, "a login reached the blob host")
        peak = self.proxy.process.status("VmHWM")
        want(peak < RESIDENT_MAX_KIB, f"resident memory rose to {peak} KiB")
        want(self.proxy.process.stop() == 0, "exit code", self.proxy.process.popen.returncode)


def every_way(fixtures, client, tls, cached):
    """Single- and multi-arch, with OCI's media types by tag and with docker's by digest."""
    trip, layout = Trip(fixtures, tls, cached), small_images(fixtures.bench)
    trip.stack.front.expire()
    for tag in ["single", "multi"]:
        for docker in [False, True]:
            name = f"{client.name}/{trip.mode}/{tag}-{'docker' if docker else 'oci'}"
            pushed = trip.push(client, layout, tag, name, docker=docker)
            trip.pull(client, name, *pushed, by_digest=docker)
    trip.end()


def sixty_layers(fixtures, tls, cached):
    trip, layout = Trip(fixtures, tls, cached), Layout(fixtures.bench.fresh("layout-sixty"))
    layout.add_image("sixty", [20_000] * 60, ARCH)
    trip.stack.front.expire()
    for client in [Skopeo(), Containerd()]:
        name = f"sixty/{client.name}-{trip.mode}"
        trip.pull(client, name, *trip.push(client, layout, "sixty", name))
    trip.end()


def three_hundred_mb(fixtures, tls, cached):
    trip = Trip(fixtures, tls, cached)
    name = f"big/{trip.mode}"
    pushed = trip.push(Skopeo(), fixtures.big, "push", name)
    trip.stack.front.expire()
    trip.pull(Skopeo(), name, *pushed)
    trip.end()


def register(name, function, *arguments):
    def body(fixtures, _bench):
        function(fixtures, *arguments)

    body.__name__ = name
    check("bench")(body)


for _tls, _cached in MODES:
    _mode = mode_name(_tls, _cached)
    for _client in PUSHERS:
        register(f"ecr_{_client.name}_pushes_and_pulls_{_mode}", every_way, _client, _tls, _cached)
    register(f"ecr_sixty_layers_{_mode}", sixty_layers, _tls, _cached)
    register(f"ecr_300_mb_{_mode}", three_hundred_mb, _tls, _cached)
