"""The end-to-end checks: what real clients get through the proxy from a real registry.

A check is a function marked `@check(fixture)`; its name is what is printed. A fixture is a method
of `Fixtures`, started when the first check wants it.
"""

import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import time
import typing
import urllib.parse

import image
import measure
from images import MIB, Layout
from parts import (
    MANIFESTS,
    PASSWORD,
    Failed,
    basic,
    free_port,
    proxy_command,
    random_bytes,
    skopeo,
    wait_listening,
    wait_until,
)

CHECKS = []
BIG_LAYERS = [100 * MIB] * 3
# "Done when" of a 300 MB pull or push: far below the image, so nothing of it is held.
RESIDENT_MAX_KIB = 64 * 1024


class Check(typing.NamedTuple):
    """A check, and the fixture that it needs."""

    name: str
    fixture: str
    function: typing.Callable
    # It looks at what the other checks left, so it runs in each lane.
    everywhere: bool


def check(fixture, everywhere=False):
    """Marks a check and names what it needs."""
    def mark(function):
        CHECKS.append(Check(function.__name__, fixture, function, everywhere))
        return function

    return mark


def want(truth, *what):
    """Fails with `what` unless `truth`."""
    if not truth:
        raise Failed(" ".join(str(part) for part in what))


class Rig:
    """One proxy and what stands behind it."""

    def __init__(self, bench, proxy, registry, aws, layers):
        self.bench, self.proxy, self.registry = bench, proxy, registry
        self.aws, self.layers = aws, layers

    def pull(self, name):
        """Pulls through the proxy; the folder of files that skopeo wrote."""
        folder = self.bench.path("pulled-" + name.replace("/", "-").replace(":", "-"))
        skopeo("copy", "--all", *self._verify("src"), self._image(name), f"dir:{folder}")
        return folder

    def push(self, layout, tag, name, *options):
        """Pushes an image of a layout through the proxy."""
        source = f"oci:{layout.folder}:{tag}"
        skopeo("copy", "--all", *options, *self._verify("dest"), source, self._image(name))

    def seed(self, layout, tag, name):
        """Puts an image into the registry, past the proxy."""
        credentials = ["--dest-creds", f"AWS:{PASSWORD}", "--dest-tls-verify=false"]
        source = f"oci:{layout.folder}:{tag}"
        target = f"docker://{self.registry.address}/{name}"
        skopeo("copy", "--all", *credentials, source, target)

    def _verify(self, side):
        return [f"--{side}-tls-verify=false"]

    def _image(self, name):
        return f"docker://{self.proxy.address}/{name}"


class Fixtures:
    """Everything the checks stand on, each part started once."""

    def __init__(self, bench):
        self.bench = bench
        self.rigs = []

    @functools.cached_property
    def aws(self):
        return self.bench.moto(enforce=True)

    @functools.cached_property
    def layout(self):
        """Small images, and one of 60 layers."""
        layout = Layout(self.bench.path("layout"))
        layout.add_image("single", [MIB, 3 * MIB])
        layout.add_index("multi", [MIB], ["amd64", "arm64", "s390x"])
        layout.add_image("sixty", [20_000] * 60)
        layout.add_image("seeded", [MIB, MIB])
        layout.add_index("seeded-multi", [MIB, 1000], ["amd64", "arm64"])
        return layout

    @functools.cached_property
    def big(self):
        """Two different images of 300 MB: one to pull, one to push."""
        layout = Layout(self.bench.path("big"))
        layout.add_image("pull", BIG_LAYERS)
        layout.add_image("push", BIG_LAYERS)
        return layout

    @functools.cached_property
    def files(self):
        """The registry redirects blobs to a second host, over http."""
        storage = self.bench.path("files-storage")
        os.makedirs(storage)
        layers = self.bench.layer_host(["--files", storage])
        registry = self.bench.registry(redirecting_files(storage, layers))
        return self._rig(registry, self.aws, layers, {})

    @functools.cached_property
    def s3(self):
        """The registry keeps its blobs in S3 and redirects with presigned URLs."""
        store = self.bench.moto(enforce=False)
        layers = self.bench.layer_host(["--guard", store.address])
        layers.request("PUT", "/ecr-layers")
        registry = self.bench.registry(s3_storage(layers), name="registry-s3")
        return self._rig(registry, self.aws, layers, {"LOG_FORMAT": "json"})

    @functools.cached_property
    def load_upstream(self):
        """What the proxies under load have behind them; it is never stopped."""
        import cached

        return cached.Upstream(self.bench, "files")

    @functools.cached_property
    def authority(self):
        """A CA that nobody knows unless told."""
        return self.bench.authority()

    @functools.cached_property
    def tls(self):
        """Registry, second host and AWS over TLS, with a CA that only `AWS_CA_BUNDLE` knows."""
        tls = self.authority
        aws = self.bench.moto(enforce=True, tls=tls)
        storage = self.bench.path("tls-storage")
        os.makedirs(storage)
        layers = self.bench.layer_host(["--files", storage], tls)
        registry = self.bench.registry(redirecting_files(storage, layers), "registry-tls", tls)
        return self._rig(registry, aws, layers, {"AWS_CA_BUNDLE": tls.ca})

    @functools.cached_property
    def denied(self):
        """A proxy whose AWS secret is wrong, in front of the registry of `files`."""
        behind = self.files
        env = {
            **self.aws.env(),
            "ECR": behind.registry.url,
            "AWS_SECRET_ACCESS_KEY": "wrong/Secret+thatIsNobodys0123456789abcd",
        }
        proxy = self.bench.proxy(env, name="proxy-denied", wait_ready=False)
        return Rig(self.bench, proxy, behind.registry, self.aws, behind.layers)

    @functools.cached_property
    def image(self):
        """The container image that `make image` left in dist/."""
        return image.Image(self.bench)

    def _rig(self, registry, aws, layers, env):
        env = {"ECR": registry.url, "BLOB_HOSTS": layers.address, **aws.env(), **env}
        rig = Rig(self.bench, self.bench.proxy(env), registry, aws, layers)
        rig.env = env
        self.rigs.append(rig)
        return rig


def redirecting_files(storage, layers):
    """Registry storage in a folder whose blobs are answered with a 307 to `layers`."""
    redirect = {"name": "redirect", "options": {"baseurl": layers.url + "/"}}
    return {
        "storage": {
            "filesystem": {"rootdirectory": storage},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "middleware": {"storage": [redirect]},
    }


def s3_storage(layers):
    """Registry storage in S3 at `layers`."""
    s3 = {
        "accesskey": "x", "secretkey": "y", "region": "us-east-1", "bucket": "ecr-layers",
        "regionendpoint": layers.url, "secure": False, "v4auth": True, "forcepathstyle": True,
    }
    purging = {"uploadpurging": {"enabled": False}}
    return {"storage": {"s3": s3, "delete": {"enabled": True}, "maintenance": purging}}


# === pull and push ===


def same_manifest(rig, layout, tag, name):
    """The registry holds, bit for bit, what the layout holds under `tag`: manifests and blobs."""
    repository, _, reference = name.partition(":")
    digest = layout.tags[tag]["digest"]
    got = rig.registry.manifest(repository, reference)
    want(got == layout.read(digest), f"{name}: the registry's manifest is not that of the layout")
    for child in layout.blobs(digest):
        data = layout.read(child)
        if b'"schemaVersion"' in data[:64]:
            want(rig.registry.manifest(repository, child) == data, name, child, "differs")
        else:
            want(rig.registry.blob_exists(repository, child), name, "lacks", child)


def same_files(layout, tag, folder):
    """A `dir:` that skopeo wrote holds every blob of the image, bit for bit."""
    digest = layout.tags[tag]["digest"]
    found = set()
    for name in os.listdir(folder):
        if name == "version":
            continue
        with open(os.path.join(folder, name), "rb") as file:
            found.add("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
    missing = set(layout.blobs(digest)) - found
    want(not missing, f"{tag}: not in what was pulled: {missing}")


def round_trip(rig, layout, tag, name):
    """Push through the proxy, compare in the registry, pull through the proxy, compare."""
    rig.push(layout, tag, name)
    same_manifest(rig, layout, tag, name)
    same_files(layout, tag, rig.pull(name))


@check("files")
def base_endpoint_needs_no_credential(fixtures, rig):
    reply = rig.proxy.get("/v2/")
    want(reply.status == 200, "GET /v2/ answered", reply.status, reply.body)
    want(reply.getheader("WWW-Authenticate") is None, "a challenge was shown")
    direct = rig.registry.get("/v2/")
    want(direct.status == 401, "the registry itself must refuse: ", direct.status)


@check("files")
def push_and_pull_single_arch(fixtures, rig):
    round_trip(rig, fixtures.layout, "single", "team/single:1")


@check("files")
def push_and_pull_multi_arch(fixtures, rig):
    round_trip(rig, fixtures.layout, "multi", "team/multi:1")


@check("files")
def push_and_pull_sixty_layers(fixtures, rig):
    round_trip(rig, fixtures.layout, "sixty", "team/deep/er/sixty:1")


@check("files")
def pull_what_others_pushed(fixtures, rig):
    for tag in ["seeded", "seeded-multi"]:
        rig.seed(fixtures.layout, tag, f"team/{tag}:1")
        same_files(fixtures.layout, tag, rig.pull(f"team/{tag}:1"))
    digest = fixtures.layout.tags["seeded"]["digest"]
    rig.pull(f"team/seeded@{digest}")


@check("files")
def push_and_pull_docker_schema_2(fixtures, rig):
    for tag, kind in [("single", "manifest"), ("multi", "manifest.list")]:
        name = f"team/docker-{tag}"
        rig.push(fixtures.layout, tag, f"{name}:1", "--format", "v2s2")
        manifest = rig.registry.manifest(name, "1")
        media_type = json.loads(manifest)["mediaType"]
        want(media_type == f"application/vnd.docker.distribution.{kind}.v2+json", media_type)
        folder = rig.pull(f"{name}:1")
        with open(os.path.join(folder, "manifest.json"), "rb") as file:
            want(file.read() == manifest, f"{name}: the pulled manifest differs")


@check("files")
def pull_300_mb_in_64_mb(fixtures, rig):
    rig.seed(fixtures.big, "pull", "team/big-pull:1")
    same_files(fixtures.big, "pull", rig.pull("team/big-pull:1"))
    peak = rig.proxy.process.status("VmHWM")
    want(peak < RESIDENT_MAX_KIB, f"resident memory rose to {peak} KiB")


@check("files")
def push_300_mb_in_64_mb(fixtures, rig):
    rig.push(fixtures.big, "push", "team/big-push:1")
    same_manifest(rig, fixtures.big, "push", "team/big-push:1")
    peak = rig.proxy.process.status("VmHWM")
    want(peak < RESIDENT_MAX_KIB, f"resident memory rose to {peak} KiB")


@check("files")
def blobs_come_from_the_second_host_without_credential(fixtures, rig):
    rig.seed(fixtures.layout, "seeded", "team/seeded:1")
    before = rig.layers.seen()["requests"]
    rig.pull("team/seeded:1")
    after = rig.layers.seen()
    want(after["requests"] > before, "no blob came from the second host")
    want(after["refused"] == 0, "requests with Authorization reached it:", after["refused"])


@check("files")
def range_of_a_blob(fixtures, rig):
    rig.seed(fixtures.layout, "seeded", "team/seeded:1")
    blob = fixtures.layout.blobs(fixtures.layout.tags["seeded"]["digest"])[-1]
    reply = rig.proxy.get(f"/v2/team/seeded/blobs/{blob}", Range="bytes=100-299")
    want(reply.status == 206, "status", reply.status)
    want(reply.body == fixtures.layout.read(blob)[100:300], "wrong bytes")


@check("files")
def head_tells_length_and_digest(fixtures, rig):
    rig.seed(fixtures.layout, "seeded", "team/seeded:1")
    digest = fixtures.layout.tags["seeded"]["digest"]
    for target in [f"manifests/{digest}", f"blobs/{fixtures.layout.blobs(digest)[-1]}"]:
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        reply = rig.proxy.request("HEAD", f"/v2/team/seeded/{target}", headers=accept)
        length = len(fixtures.layout.read(target.partition("/")[2]))
        want(reply.status == 200, target, "status", reply.status)
        want(reply.getheader("Content-Length") == str(length), target, reply.getheaders())


@check("files")
def missing_manifest_is_404_with_an_oci_error(fixtures, rig):
    reply = rig.proxy.get("/v2/team/none/manifests/1")
    want(reply.status == 404, "status", reply.status)
    code = json.loads(reply.body)["errors"][0]["code"]
    want(code in ("MANIFEST_UNKNOWN", "NAME_UNKNOWN"), reply.body)


@check("files")
def a_clients_own_credential_stays_here(fixtures, rig):
    wrong = "Basic bm9ib2R5Om5vdGhpbmc="
    reply = rig.proxy.get("/v2/", Authorization=wrong)
    want(reply.status == 200, "status", reply.status)


@check("files")
def a_cut_blob_is_an_error(fixtures, rig):
    rig.seed(fixtures.layout, "single", "team/cut:1")
    blob = fixtures.layout.blobs(fixtures.layout.tags["single"]["digest"])[-1]
    url = f"{rig.proxy.url}/v2/team/cut/blobs/{blob}"
    rig.layers.cut_after(200_000)
    try:
        got = subprocess.run(["curl", "-sS", "-m", "60", "-o", "/dev/null", url],
                             capture_output=True)
        try:
            rig.pull("team/cut:1")
            pulled = True
        except Failed:
            pulled = False
    finally:
        rig.layers.cut_after(0)
    # 18: fewer bytes than promised; 56: connection reset.
    want(got.returncode in (18, 56), "curl ended with", got.returncode, got.stderr)
    want(not pulled, "skopeo took a cut layer for whole")
    same_files(fixtures.layout, "single", rig.pull("team/cut:1"))


# === listings and headers ===


@check("files")
def tags_list(fixtures, rig):
    for tag in ["1", "2.0", "latest"]:
        rig.seed(fixtures.layout, "seeded", f"team/tags:{tag}")
    listing = json.loads(rig.proxy.get("/v2/team/tags/tags/list").body)
    want(listing["name"] == "team/tags", listing)
    want(sorted(listing["tags"]) == ["1", "2.0", "latest"], listing)


@check("files")
def catalogue_page_by_page(fixtures, rig):
    for name in ["a/one", "b/two", "c/three"]:
        rig.seed(fixtures.layout, "seeded", f"{name}:1")
    target, found = "/v2/_catalog?n=1", []
    for _ in range(100):
        reply = rig.proxy.get(target)
        want(reply.status == 200, target, reply.status)
        found += json.loads(reply.body)["repositories"]
        link = reply.getheader("Link")
        if not link:
            break
        target = own_target(rig, re.match("<([^>]*)>", link).group(1))
    want({"a/one", "b/two", "c/three"} <= set(found), found)
    want(len(found) == len(set(found)), "a repository twice:", found)


def own_target(rig, url):
    """The target of a URL, which must lead to the proxy: its own address, or relative."""
    want(url.startswith("/v2/") or url.startswith(rig.proxy.url + "/v2/"), "leads astray:", url)
    return url.removeprefix(rig.proxy.url)


def begin_upload(rig, **headers):
    """The Location of a new upload."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    reply = rig.proxy.request("POST", "/v2/team/upload/blobs/uploads/", headers=named)
    want(reply.status == 202, "status", reply.status, reply.body)
    return reply.getheader("Location")


@check("files")
def location_is_the_address_the_client_sees(fixtures, rig):
    cases = [
        ({}, rig.proxy.url),
        ({"Host": "registry.example.com"}, "http://registry.example.com"),
        ({"Host": "registry.example.com:8080"}, "http://registry.example.com:8080"),
        (
            {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "pull.example.com"},
            "https://pull.example.com",
        ),
        (
            {
                "X_Forwarded_Proto": "https",
                "X_Forwarded_Host": "pull.example.com",
                "X_Forwarded_Port": "8443",
            },
            "https://pull.example.com:8443",
        ),
        ({"Forwarded": "proto=https;host=f.example.com"}, "https://f.example.com"),
    ]
    for headers, address in cases:
        location = begin_upload(rig, **headers)
        want(location.startswith(address + "/v2/team/upload/"), headers, "gave", location)


@check("files")
def upload_in_one_and_in_pieces(fixtures, rig):
    data = random_bytes(300_000)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()

    def finish(location, body, digest):
        target = own_target(rig, location)
        target += ("&" if "?" in target else "?") + "digest=" + urllib.parse.quote(digest)
        reply = rig.proxy.request("PUT", target, body)
        want(reply.status == 201, "PUT answered", reply.status, reply.body)
        own_target(rig, reply.getheader("Location"))

    finish(begin_upload(rig), data, digest)
    want(rig.registry.blob_exists("team/upload", digest), "not in the registry")

    pieces = [random_bytes(1000), random_bytes(200_000), random_bytes(1)]
    location, sent = begin_upload(rig), 0
    for piece in pieces:
        content_range = f"{sent}-{sent + len(piece) - 1}"
        headers = {"Content-Range": content_range, "Content-Type": "application/octet-stream"}
        reply = rig.proxy.request("PATCH", own_target(rig, location), piece, headers)
        want(reply.status == 202, "PATCH answered", reply.status, reply.body)
        location, sent = reply.getheader("Location"), sent + len(piece)
        want(reply.getheader("Range") == f"0-{sent - 1}", reply.getheaders())
    digest = "sha256:" + hashlib.sha256(b"".join(pieces)).hexdigest()
    finish(location, b"", digest)
    want(rig.registry.blob_exists("team/upload", digest), "not in the registry")


@check("files")
def chunked_upload_by_curl(fixtures, rig):
    data = random_bytes(2 * MIB)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    location = begin_upload(rig)
    url = rig.proxy.url + own_target(rig, location)
    done = subprocess.run(
        ["curl", "-sS", "-m", "60", "-X", "PATCH", "-H", "Transfer-Encoding: chunked",
         "-H", "Content-Type: application/octet-stream", "--data-binary", "@-",
         "-o", "/dev/null", "-D", "-", url],
        input=data, capture_output=True)
    head = done.stdout.decode()
    want(" 202" in head, "PATCH answered", head, done.stderr)
    location = re.search(r"(?im)^location: *(\S+)", head).group(1)
    target = own_target(rig, location)
    target += ("&" if "?" in target else "?") + "digest=" + digest
    reply = rig.proxy.request("PUT", target, b"")
    want(reply.status == 201, "PUT answered", reply.status, reply.body)


@check("files")
def delete_a_manifest(fixtures, rig):
    rig.seed(fixtures.layout, "seeded", "team/delete:1")
    digest = fixtures.layout.tags["seeded"]["digest"]
    reply = rig.proxy.request("DELETE", f"/v2/team/delete/manifests/{digest}")
    want(reply.status == 202, "status", reply.status, reply.body)
    reply = rig.proxy.get("/v2/team/delete/manifests/1", Accept=MANIFESTS)
    want(reply.status == 404, "still there:", reply.status)


# === S3, TLS ===


@check("s3")
def s3_presigned_redirects(fixtures, rig):
    round_trip(rig, fixtures.layout, "single", "team/single:1")
    round_trip(rig, fixtures.layout, "multi", "team/multi:1")
    seen = rig.layers.seen()
    want(seen["requests"] > 0, "no presigned request reached S3")
    want(seen["refused"] == 0, "requests with Authorization reached S3:", seen["refused"])


@check("s3")
def json_log_is_json(fixtures, rig):
    rig.proxy.get("/v2/")
    lines = rig.proxy.process.text().splitlines()
    requests = [line for line in map(json.loads, lines) if line.get("path") == "/v2/"]
    want(requests, "no line for GET /v2/")
    for field in ["method", "path", "status", "bytes", "peer"]:
        want(field in requests[-1], f"no {field} in", requests[-1])


@check("tls")
def tls_everywhere_with_an_own_ca(fixtures, rig):
    round_trip(rig, fixtures.layout, "single", "team/single:1")
    round_trip(rig, fixtures.layout, "multi", "team/multi:1")
    want(rig.layers.seen()["refused"] == 0, "requests with Authorization reached the second host")


@check("tls")
def tls_of_an_unknown_ca_is_refused(fixtures, rig):
    env = {name: value for name, value in rig.env.items() if name != "AWS_CA_BUNDLE"}
    proxy = fixtures.bench.proxy(env, name="proxy-no-ca", wait_ready=False)
    try:
        time.sleep(2)
        want(proxy.get("/healthz").status == 200, "not alive")
        want(proxy.get("/readyz").status == 503, "ready without a verified AWS")
        want(proxy.get("/v2/_catalog").status in (502, 503), "served without a verified AWS")
    finally:
        proxy.process.stop()


# === what the operator sees ===


@check("files")
def own_pages(fixtures, rig):
    want(rig.proxy.get("/healthz").status == 200, "/healthz")
    want(rig.proxy.get("/readyz").status == 200, "/readyz")
    version = json.loads(rig.proxy.get("/version").body)
    want(re.fullmatch(r"\d+\.\d+\.\d+\S*", version["version"]), version)
    want(rig.proxy.get("/elsewhere").status == 404, "/elsewhere is not 404")


@check("denied")
def wrong_aws_secret_is_said_clearly(fixtures, rig):
    def refused():
        return rig.proxy.get("/v2/_catalog").status == 503

    wait_until(rig.proxy.process, "a 503", refused)
    reply = rig.proxy.get("/v2/team/single/manifests/1")
    want(reply.status == 503, "status", reply.status, reply.body)
    error = json.loads(reply.body)["errors"][0]
    want(len(error["message"]) > 20, "says too little:", error)
    want(reply.getheader("WWW-Authenticate") is None, "asks the client for a credential")
    want(rig.proxy.get("/readyz").status == 503, "ready without a token")
    want(rig.proxy.get("/healthz").status == 200, "not alive")
    want("SignatureDoesNotMatch" in rig.proxy.process.text(), "AWS's own word is not in the log")


@check("denied")
def failed_renewals_back_off(fixtures, rig):
    calls = rig.aws.process.text().count("POST / ")
    time.sleep(3)
    more = rig.aws.process.text().count("POST / ") - calls
    want(more < 15, f"{more} calls to AWS in 3 s")


@check("files")
def an_expired_token_date_causes_no_tight_loop(fixtures, rig):
    # moto's tokens expired in 2015.
    calls = rig.aws.process.text().count("POST / ")
    time.sleep(3)
    more = rig.aws.process.text().count("POST / ") - calls
    want(more < 15, f"{more} calls to AWS in 3 s")


@check("files")
def upstream_gone_and_back(fixtures, rig):
    rig.seed(fixtures.layout, "seeded", "team/gone:1")
    rig.registry.process.popen.send_signal(signal.SIGSTOP)
    try:
        want(rig.proxy.get("/healthz").status == 200, "/healthz waits for the registry")
    finally:
        rig.registry.process.popen.send_signal(signal.SIGCONT)
    reply = rig.proxy.get("/v2/team/gone/manifests/1", Accept=MANIFESTS)
    want(reply.status == 200, "not served after it came back:", reply.status)


@check("files")
def bad_settings_exit_64(fixtures, rig):
    env = {"PATH": os.environ["PATH"], "LISTEN_PORT": "many", "MAX_UPLOADS": "-1"}
    done = subprocess.run(proxy_command(), env=env, capture_output=True, timeout=30)
    said = (done.stdout + done.stderr).decode()
    want(done.returncode == 64, "exit code", done.returncode, said)
    want("LISTEN_PORT" in said and "MAX_UPLOADS" in said, "not all faults at once:", said)


@check("files")
def a_taken_port_is_said(fixtures, rig):
    env = {"PATH": os.environ["PATH"], "LISTEN_HOST": "127.0.0.1", **rig.env}
    env["LISTEN_PORT"] = str(rig.proxy.port)
    done = subprocess.run(proxy_command(), env=env, capture_output=True, timeout=30)
    said = (done.stdout + done.stderr).decode()
    want(done.returncode not in (0, None), "exit code", done.returncode)
    want(str(rig.proxy.port) in said, "does not name the port:", said)


@check("files")
def sigterm_lets_a_pull_end(fixtures, rig):
    rig.seed(fixtures.big, "pull", "team/big-pull:1")
    proxy = fixtures.bench.proxy(rig.env, name="proxy-drain")
    blob = fixtures.big.blobs(fixtures.big.tags["pull"]["digest"])[-1]
    url = f"{proxy.url}/v2/team/big-pull/blobs/{blob}"
    slow = subprocess.Popen(["curl", "-sS", "--limit-rate", "40M", "-o", "/dev/null", url])
    time.sleep(0.5)
    proxy.process.popen.terminate()
    want(slow.wait(60) == 0, "the pull was cut, curl ended with", slow.returncode)
    want(proxy.process.popen.wait(40) == 0, "exit code", proxy.process.popen.returncode)


# === many at once: the shapes of `make measure`, at ten times its bound ===

HEALTH_SECONDS_MAX = 10.0


def health_stays_up(fixtures, load, env):
    """/healthz answers in time under `load`, and the process is the same afterwards."""
    name = "proxy-" + load.__name__.replace("_", "-")
    proxy = fixtures.bench.proxy({**env, **measure.SHORT_GRACE}, name=name)
    slowest = max(measure.health_under(proxy, load, samples=5))
    want(slowest < HEALTH_SECONDS_MAX, f"/healthz took {slowest:.2f} s")
    want(proxy.process.alive(), "the process ended")
    proxy.process.stop()


@check("files")
def health_beside_300_half_open_connections(fixtures, rig):
    health_stays_up(fixtures, measure.half_open, rig.env)


@check("files")
def health_beside_100_stalled_uploads(fixtures, rig):
    health_stays_up(fixtures, measure.stalled_uploads, rig.env)


@check("files")
def health_beside_100_waiting_for_a_black_hole(fixtures, rig):
    with measure.BlackHole() as hole:
        health_stays_up(fixtures, measure.waiting_requests, {**rig.env, "ECR": hole.url})


# === the image ===


@check("image")
def image_configuration(fixtures, built):
    config = built.config()
    want(config.get("User") == "65532:65532", config)
    want(config.get("Entrypoint") == ["/aws-ecr-proxy"], config)
    test = config.get("Healthcheck", {}).get("Test")
    want(test == ["CMD", "/aws-ecr-proxy", "health"], config)
    want("8080/tcp" in config.get("ExposedPorts", {}), config)


@check("image")
def image_holds_only_what_it_needs(fixtures, built):
    files = built.files()
    want(set(files) == {"aws-ecr-proxy", "etc/ssl/certs/ca-certificates.crt"}, files)


@check("image")
def image_runs_serves_and_is_healthy(fixtures, built):
    said = built.run("--version")
    want(re.search(r"\d+\.\d+\.\d+", said), said)
    rig = fixtures.files
    port = free_port()
    owner = os.stat(os.path.join(built.root, "cache"))
    want((owner.st_uid, owner.st_gid) == (65532, 65532), "/cache belongs to", owner.st_uid)
    env = {**rig.env, "LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": str(port)}
    process = built.start(env)
    want(wait_listening(process) == port, "listens elsewhere")
    wait_until(process, "/readyz 200 by `health`", lambda: built.health(env) == 0)
    want("cache opened" in process.text(), "no cache in /cache")
    process.stop()
    want(built.health(env) != 0, "`health` is content without a proxy")
