"""The end-to-end checks of the cache, with real clients and real outages.

Each check has an upstream of its own where it stops it.
"""

import contextlib
import http.server
import json
import os
import shutil
import threading

import cached
import power_cut
from checks import RESIDENT_MAX_KIB, check, want
from clients import ARCH, CLIENTS, need_root, tmpfs
from images import MIB, Layout
from parts import (
    MANIFESTS,
    SEED,
    Failed,
    proxy_command,
    random_bytes,
    run,
    skopeo,
    wait_until,
)

# The image's own user.
IMAGE_USER = 65532
# Ten times the bound of `make measure`: a single time on a shared machine says little.
CROWD_FACTOR_MAX = 12
CROWD_BYTES = 120 * MIB
CROWD_RATE = 40 * MIB
# `make soak` has the full count.
KILLS = 5
# `make power-cuts` has the full count.
CUTS = 20


def layout_for(bench, tags):
    """Small images, alternately plain and multi-arch, for this machine's architecture."""
    layout = Layout(bench.fresh("layout"))
    for number, tag in enumerate(tags):
        if number % 2:
            layout.add_index(tag, [MIB], [ARCH, "s390x"])
        else:
            layout.add_image(tag, [MIB, 2 * MIB], ARCH)
    return layout


def expected(layout, tag):
    """The digests that any client of this machine must have got: what names the image, and (as
    podman keeps no more) the configuration of its own architecture."""
    digest = layout.tags[tag]["digest"]
    manifest = json.loads(layout.read(digest))
    for child in manifest.get("manifests", []):
        if child["platform"]["architecture"] == ARCH:
            manifest = json.loads(layout.read(child["digest"]))
    return digest, manifest["config"]["digest"]


def pull_offline(bench, proxy, layout, tags):
    """Every client pulls every image by tag and by digest from a proxy without an upstream."""
    for tag in tags:
        digest, config = expected(layout, tag)
        for client in CLIENTS:
            for name in [f"team/{tag}:1", f"team/{tag}@{digest}"]:
                try:
                    got = client.pull(bench, proxy.address, name)
                except Failed as error:
                    raise Failed(f"{client.name} could not pull {name} offline: {error}") from None
                want(config in got, client.name, name, "lacks the configuration", config)


def survives_an_outage(bench, upstream, warm):
    """One pull of an image per client, the outage, a restart, and then every pull again."""
    tags = [client.name for client in CLIENTS]
    layout = layout_for(bench, tags)
    cache = bench.fresh("cache")
    for tag in tags:
        upstream.seed(layout, tag, f"team/{tag}:1")
    proxy = upstream.proxy(cache, CACHE_TAG_TTL="0s")
    for client in CLIENTS:
        warm(client, proxy)
    want(proxy.process.stop() == 0, "exit code", proxy.process.popen.returncode)
    upstream.stop()
    proxy = upstream.proxy(cache, CACHE_TAG_TTL="0s")
    try:
        # Before all else: nothing of this run has yet learnt that upstream is gone.
        reply = proxy.request("HEAD", f"/v2/team/{tags[0]}/manifests/1",
                              headers={"Accept": MANIFESTS})
        want(reply.getheader("X-Cache") == "STALE", "not marked as stale:", reply.getheaders())
        want(reply.getheader("Warning", "").startswith("299 "), reply.getheaders())
        pull_offline(bench, proxy, layout, tags)
        for tag in tags:
            listing = proxy.get(f"/v2/team/{tag}/tags/list")
            want(json.loads(listing.body) == {"name": f"team/{tag}", "tags": ["1"]}, listing.body)
        # At the least a manifest and a blob for each of the pulls.
        slowest = cached.check_answers(proxy, least=2 * 2 * len(tags) * len(CLIENTS))
        print(f"# slowest answer without an upstream: {slowest} ms", flush=True)
    finally:
        proxy.process.stop()


@check("bench")
def cache_serves_every_client_without_upstream(fixtures, bench):
    upstream = cached.Upstream(bench, "s3")

    def warm(client, proxy):
        client.pull(bench, proxy.address, f"team/{client.name}:1")

    survives_an_outage(bench, upstream, warm)


@check("bench")
def cache_remembers_the_registry_when_ecr_is_unset(fixtures, bench):
    upstream = cached.Upstream(bench, "real name", fixtures.authority)
    want("ECR" not in upstream.env, "ECR is set: nothing would be tested")

    def warm(client, proxy):
        client.pull(bench, proxy.address, f"team/{client.name}:1")

    survives_an_outage(bench, upstream, warm)


@check("bench")
def cache_serves_what_came_by_head_of_tag_and_digest(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    layout = Layout(bench.fresh("layout"))
    layout.add_image("head", [MIB], ARCH)
    upstream.seed(layout, "head", "team/head:1")
    cache = bench.fresh("cache")
    proxy = upstream.proxy(cache)
    cached.pull_as_the_smallest_client(proxy, "team/head", "1")
    proxy.process.stop()
    upstream.stop()
    proxy = upstream.proxy(cache)
    pull_offline(bench, proxy, layout, ["head"])
    listing = json.loads(proxy.get("/v2/team/head/tags/list").body)
    want(listing["tags"] == ["1"], listing)
    cached.check_answers(proxy, least=2 * 2 * len(CLIENTS))
    proxy.process.stop()


@contextlib.contextmanager
def impostor(address, status, media_type, page):
    """Something that answers every request at the registry's address with the same page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(page)

        do_GET = do_HEAD = answer

        def log_message(self, *_):
            """Says nothing."""

    host, _, port = address.rpartition(":")
    server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@check("bench")
def cache_serves_every_client_while_something_else_answers(fixtures, bench):
    """A captive portal, a load balancer without backends, a page of JSON: each is an outage."""
    upstream = cached.Upstream(bench, "files")
    tags = ["plain", "multi"]
    layout = layout_for(bench, tags)
    proxy = upstream.proxy(bench.fresh("cache"), CACHE_TAG_TTL="0s")
    for tag in tags:
        upstream.seed(layout, tag, f"team/{tag}:1")
        for client in CLIENTS:
            client.pull(bench, proxy.address, f"team/{tag}:1")
        want(proxy.get(f"/v2/team/{tag}/tags/list").status == 200, "no list of tags")
    upstream.registry.process.stop()
    for answer in [
        (200, "text/html", b"<html>log in</html>"),
        (404, "text/html", b"<h1>404 Not Found</h1>"),
        (200, "application/json", b"{}"),
    ]:
        with impostor(upstream.registry.address, *answer):
            reply = proxy.request("HEAD", "/v2/team/multi/manifests/1", headers={"Accept": MANIFESTS})
            want(reply.getheader("X-Cache") == "STALE", answer, reply.status, reply.getheaders())
            pull_offline(bench, proxy, layout, tags)
            listing = proxy.get("/v2/team/plain/tags/list")
            want(json.loads(listing.body)["tags"] == ["1"], answer, listing.status, listing.body)
    want(proxy.process.stop() == 0, "exit code", proxy.process.popen.returncode)


@check("bench")
def cache_is_an_oci_layout_for_skopeo(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    layout = Layout(bench.fresh("layout"))
    layout.add_image("direct", [MIB, 1000], ARCH)
    upstream.seed(layout, "direct", "team/direct:1")
    cache = bench.fresh("cache")
    proxy = upstream.proxy(cache)
    CLIENTS[0].pull(bench, proxy.address, "team/direct:1")
    name = f"{cached.host_folder(upstream)}/team/direct:1"
    # The index follows within seconds while the proxy runs.
    wait_until(proxy.process, f"{name} in index.json", lambda: name in cached.descriptor_names(cache))
    digest = layout.tags["direct"]["digest"]
    want(cached.descriptor_names(cache)[name] == digest, cached.descriptor_names(cache))
    out = bench.fresh("direct")
    skopeo("copy", f"oci:{cache}:{name}", f"dir:{out}")
    with open(os.path.join(out, "manifest.json"), "rb") as file:
        want(file.read() == layout.read(digest), "another manifest than was pushed")
    for blob in layout.blobs(digest)[1:]:
        with open(os.path.join(out, blob.partition(":")[2]), "rb") as file:
            want(file.read() == layout.read(blob), blob, "differs")
    proxy.process.stop()


# === a disk that fails ===


def big_image(bench, upstream):
    """An image of 300 MB: one layer that no 64 MB hold, and several of which only the first fits."""
    layout = Layout(bench.fresh("layout-big"))
    layout.add_image("big", [100 * MIB] + [40 * MIB] * 5, ARCH)
    upstream.seed(layout, "big", "team/big:1")
    return layout


def pulls_whole(bench, proxy, layout):
    """The image arrives, bit for bit."""
    got = CLIENTS[0].pull(bench, proxy.address, "team/big:1")
    missing = set(layout.blobs(layout.tags["big"]["digest"])) - got
    want(not missing, "not in what was pulled:", missing)


@check("bench")
def cache_on_a_64_mb_disk_fails_no_pull(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    layout = big_image(bench, upstream)
    with tmpfs(bench.path("tmpfs-small"), "64m") as cache:
        proxy = upstream.proxy(cache)
        for _ in range(2):
            pulls_whole(bench, proxy, layout)
        want(not cached.wrong_files(cache), "wrong files:", cached.wrong_files(cache))
        used = os.statvfs(cache)
        want(used.f_bfree < used.f_blocks, "nothing was cached at all")
        want(proxy.get("/healthz").status == 200, "/healthz")
        proxy.process.stop()


@check("bench")
def cache_on_a_read_only_disk_fails_no_pull(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    layout = big_image(bench, upstream)
    with tmpfs(bench.path("tmpfs-read-only"), "64m") as cache:
        # Once with an empty directory, once with a cache in it.
        for told in ["running without a cache", "what is in it is served, and nothing is added"]:
            run("mount", "-o", "remount,ro", cache)
            proxy = upstream.proxy(cache)
            pulls_whole(bench, proxy, layout)
            said = proxy.process.text()
            want(told in said and cache in said, "the log does not say so:", told)
            proxy.process.stop()
            run("mount", "-o", "remount,rw", cache)
            upstream.proxy(cache).process.stop()


@check("bench")
def cache_that_loses_its_rights_fails_no_pull(fixtures, bench):
    need_root("running as another user")
    upstream = cached.Upstream(bench, "files")
    layout = big_image(bench, upstream)
    cache = bench.fresh("cache-rights")
    os.chown(cache, IMAGE_USER, IMAGE_USER)
    os.chmod(bench.folder, 0o755)
    user = [f"--reuid={IMAGE_USER}", f"--regid={IMAGE_USER}", "--clear-groups"]
    proxy = upstream.proxy(cache, wrap=["setpriv", *user, "--pdeathsig", "KILL"])
    for folder, _, _ in os.walk(cache):
        os.chmod(folder, 0o555)
    pulls_whole(bench, proxy, layout)
    said = proxy.process.text()
    want(said.count("the cache cannot be written") == 1, "not said once, in a minute:", said[-2000:])
    proxy.process.stop()


# === a restart at a bad moment ===


def leave_whole_partial(cache, digest, data):
    """What a proxy leaves that is stopped after the last byte and before the blob is published."""
    folder = os.path.join(cache, "partial", "sha256")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, digest.partition(":")[2]), "wb") as file:
        file.write(data)
    published = os.path.join(cache, "blobs", *digest.split(":"))
    if os.path.exists(published):
        os.remove(published)


@check("bench")
def cache_publishes_what_was_whole_before_a_restart(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    layout = Layout(bench.fresh("layout"))
    layout.add_image("whole", [MIB], ARCH)
    upstream.seed(layout, "whole", "team/whole:1")
    layer = layout.blobs(layout.tags["whole"]["digest"])[-1]
    cache = bench.fresh("cache")
    proxy = upstream.proxy(cache)
    target = f"/v2/team/whole/blobs/{layer}"
    proxy.get(target)
    proxy.process.stop()

    # No manifest vouches for it yet, so upstream is asked, but no byte is fetched twice.
    shutil.rmtree(os.path.join(cache, "repos"))
    leave_whole_partial(cache, layer, layout.read(layer))
    proxy, before = upstream.proxy(cache), upstream.layers.seen()["bytes"]
    want(proxy.get(target).body == layout.read(layer), "wrong bytes")
    want(upstream.layers.seen()["bytes"] == before, "fetched again")
    CLIENTS[0].pull(bench, proxy.address, "team/whole:1")
    proxy.process.stop()

    # The manifest vouches for it: no upstream is needed.
    leave_whole_partial(cache, layer, layout.read(layer))
    upstream.stop()
    proxy = upstream.proxy(cache)
    want(proxy.get(target).body == layout.read(layer), "wrong bytes")
    proxy.process.stop()
    want(not cached.wrong_files(cache), "wrong files:", cached.wrong_files(cache))


# === many clients, and kills; the shapes of `make measure` and `make soak` ===


@check("bench")
def cache_fetches_a_cold_blob_once_for_16_clients(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    upstream.layers.rate(CROWD_RATE)
    seconds = []
    for count in [1, 16]:
        digest = upstream.seed_blob("team/crowd", random_bytes(CROWD_BYTES))
        proxy = upstream.proxy(bench.fresh("cache"))
        before = upstream.layers.seen()
        seconds.append(cached.slowest(proxy, "team/crowd", digest, CROWD_BYTES, count))
        after = upstream.layers.seen()
        want(after["gets"] - before["gets"] == 1, count, "clients: GETs upstream:",
             after["gets"] - before["gets"])
        # A piece is counted when it was sent, and the last one may be with the client by then.
        wait_until(upstream.layers.process, "each byte once",
                   lambda: upstream.layers.seen()["bytes"] - before["bytes"] == CROWD_BYTES)
        peak = proxy.process.status("VmHWM")
        want(peak < RESIDENT_MAX_KIB, f"resident memory rose to {peak} KiB")
        proxy.process.stop()
    want(seconds[1] < CROWD_FACTOR_MAX * seconds[0], "one and the slowest of 16 took", seconds)


@check("bench")
def cache_survives_kills_during_downloads(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    cached.kill_loop(bench, upstream, KILLS)


@check("bench")
def cache_survives_power_cuts(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    try:
        power_cut.cuts(proxy_command(), upstream.env, bench.fresh("cuts"), CUTS, SEED)
    except power_cut.Fault as fault:
        raise Failed(str(fault)) from fault
