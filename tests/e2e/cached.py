"""What the checks and figures of the cache stand on: an upstream that can be stopped, a proxy that
can be started anew on the same directory, and the loads.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import subprocess
import time

from checks import redirecting_files, s3_storage
from clients import need_root
from parts import (
    ECR_HOST,
    MANIFESTS,
    PASSWORD,
    SEED,
    Failed,
    basic,
    own_ip,
    random_bytes,
    run,
    skopeo,
    wait_until,
)

# Where the real ECR's name leads while a proxy runs with `real_name`; nobody else is there.
REAL_IP = own_ip(0)
# No answer may take longer while upstream is gone.
ANSWER_MS_MAX = 1000


class Upstream:
    """AWS, a registry and its S3, of which nothing is left after `stop`."""

    def __init__(self, bench, kind, tls=None):
        self.bench, self.kind = bench, kind
        self.aws = bench.moto(enforce=True)
        self.parts = [self.aws.process]
        if kind == "s3":
            store = bench.moto(enforce=False)
            self.layers = bench.layer_host(["--guard", store.address])
            self.layers.request("PUT", "/ecr-layers")
            storage = s3_storage(self.layers)
            self.parts.append(store.process)
        else:
            folder = bench.fresh("storage")
            # From a registry with TLS no redirect to one without is followed.
            self.layers = bench.layer_host(["--files", folder], tls)
            storage = redirecting_files(folder, self.layers)
        self.parts.append(self.layers.process)
        self.env = {"BLOB_HOSTS": self.layers.address, "LOG_FORMAT": "json", **self.aws.env()}
        self.wrap = []
        if kind == "real name":
            need_root("listening on port 443 under the real ECR's name")
            # TLS under the name that moto's token names; only the proxy resolves it.
            self.registry = bench.registry(storage, "registry-real", tls, (REAL_IP, 443))
            self.registry.address = f"{REAL_IP}:443"
            self.env["AWS_CA_BUNDLE"] = tls.ca
            self.wrap = real_names(bench, {ECR_HOST: REAL_IP})
        else:
            self.registry = bench.registry(storage, "registry-cached")
            self.env["ECR"] = self.registry.url
        self.parts.append(self.registry.process)

    def seed(self, layout, tag, name):
        """Puts an image into the registry, past the proxy."""
        skopeo("copy", "--all", "--dest-creds", f"AWS:{PASSWORD}", "--dest-tls-verify=false",
               f"oci:{layout.folder}:{tag}", f"docker://{self.registry.address}/{name}")

    def seed_blob(self, repository, data):
        """Puts a blob into the registry, past the proxy; its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        headers = {"Authorization": basic(), "Content-Type": "application/octet-stream"}
        begun = self.registry.request("POST", f"/v2/{repository}/blobs/uploads/", headers=headers)
        target = begun.getheader("Location").removeprefix(self.registry.url)
        done = self.registry.request("PUT", f"{target}&digest={digest}", data, headers)
        if done.status != 201:
            raise Failed(f"the registry did not take a blob: {done.status} {done.body[:300]}")
        return digest

    def stop(self):
        """The outage: every port of it refuses connections."""
        for process in self.parts:
            process.stop()

    def proxy(self, cache, wrap=None, **env):
        """A proxy with its cache in the directory `cache`."""
        env = {**self.env, "CACHE_DIR": cache, **env}
        return self.bench.proxy(env, name="proxy-cached", wrap=wrap or self.wrap)


def real_names(bench, addresses):
    """A command that becomes the proxy, to which these names are these addresses, and which can ask
    no name server: a mount namespace of its own with a hosts file of its own."""
    folder = bench.fresh("names")
    hosts, resolv = os.path.join(folder, "hosts"), os.path.join(folder, "resolv.conf")
    with open(hosts, "w") as file:
        file.write("127.0.0.1 localhost\n")
        file.writelines(f"{address} {name}\n" for name, address in addresses.items())
    with open(resolv, "w") as file:
        file.write("nameserver 127.0.0.1\n")
    script = f'mount --bind {hosts} /etc/hosts; mount --bind {resolv} /etc/resolv.conf; exec "$@"'
    return ["unshare", "--mount", "sh", "-ec", script, "sh"]


def requests_in(proxy):
    """The proxy's log lines of requests to the registry."""
    lines = [line for line in proxy.process.text().splitlines() if line.startswith("{")]
    found = [json.loads(line) for line in lines]
    return [line for line in found if str(line.get("path", "")).startswith("/v2/")]


def check_answers(proxy, least):
    """Every answer came in time, and none was an error; there are `least` of them."""
    answers = requests_in(proxy)
    if len(answers) < least:
        raise Failed(f"only {len(answers)} requests in the log: nothing was measured")
    for line in answers:
        if float(line["duration_ms"]) > ANSWER_MS_MAX or int(line["status"]) >= 400:
            raise Failed(f"not answered as it must be while upstream is gone: {line}")
    return max(float(line["duration_ms"]) for line in answers)


def pull_as_the_smallest_client(proxy, repository, tag):
    """HEAD of the tag, then everything by digest: what containerd does, and what leaves the tag's
    manifest to the HEAD."""
    head = proxy.request("HEAD", f"/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFESTS})
    digest = head.getheader("Docker-Content-Digest")
    got = proxy.get(f"/v2/{repository}/manifests/{digest}", Accept=MANIFESTS)
    manifest = json.loads(got.body)
    for blob in [manifest["config"], *manifest["layers"]]:
        reply = proxy.get(f"/v2/{repository}/blobs/{blob['digest']}")
        if reply.status != 200:
            raise Failed(f"blob {blob['digest']} answered {reply.status}")


# === many clients ===


def curl(proxy, repository, digest, out="/dev/null"):
    """A client of its own process that says how many bytes came and how long it took."""
    url = f"{proxy.url}/v2/{repository}/blobs/{digest}"
    return subprocess.Popen(
        ["curl", "-sS", "--fail", "-m", "120", "-o", out,
         "-w", "%{size_download} %{time_total}", url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def slowest(proxy, repository, digest, size, count):
    """Seconds of the slowest of `count` clients that pull a blob at once."""
    clients = [curl(proxy, repository, digest) for _ in range(count)]
    seconds = []
    for client in clients:
        out, error = client.communicate()
        got = out.decode().split()
        if client.returncode != 0 or int(got[0]) != size:
            raise Failed(f"curl ended with {client.returncode} after {got}: {error.decode()}")
        seconds.append(float(got[1]))
    return max(seconds)


# === kill -9 ===

KILL_BLOB_BYTES = 12 * 1024 * 1024
KILL_RATE = 24 * 1024 * 1024


def wrong_files(cache):
    """Files under blobs/ whose content is not what their name says."""
    wrong = []
    for folder, _, names in os.walk(os.path.join(cache, "blobs")):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                algorithm = os.path.basename(folder)
                if hashlib.file_digest(file, algorithm).hexdigest() != name:
                    wrong.append(name)
    return wrong


def partial_bytes(cache, digest):
    """How much of a blob a download has left behind; None when there is no partial file."""
    path = os.path.join(cache, "partial", *digest.split(":"))
    return os.path.getsize(path) if os.path.exists(path) else None


def kill_once(upstream, cache, chance):
    """Kills a proxy by SIGKILL during a download, starts it anew and pulls; the bytes that were
    resumed. Fails if anything wrong is in the cache, or anything is fetched twice."""
    data = random_bytes(KILL_BLOB_BYTES)
    digest = upstream.seed_blob("team/kill", data)
    whole_seconds = KILL_BLOB_BYTES / KILL_RATE
    upstream.layers.rate(KILL_RATE)
    proxy = upstream.proxy(cache)
    client = curl(proxy, "team/kill", digest)
    # Now and then before the first byte or after the last.
    time.sleep(chance.uniform(0, whole_seconds * 1.1))
    proxy.process.popen.kill()
    proxy.process.popen.wait()
    client.communicate()
    wrong = wrong_files(cache)
    if wrong:
        raise Failed(f"after a kill there are wrong files under blobs/: {wrong}")
    left = partial_bytes(cache, digest)
    published = os.path.exists(os.path.join(cache, "blobs", *digest.split(":")))

    upstream.layers.rate(0)
    wait_until(upstream.layers.process, "the end of the killed transfer",
               lambda: upstream.layers.seen()["active"] == 0)
    before = upstream.layers.seen()
    proxy = upstream.proxy(cache)
    got = proxy.get(f"/v2/team/kill/blobs/{digest}")
    proxy.process.stop()
    after = upstream.layers.seen()
    if got.status != 200 or got.body != data:
        raise Failed(f"the pull after a kill answered {got.status}, {len(got.body)} bytes")
    fetched = after["bytes"] - before["bytes"]
    ranges = after["ranges"][len(before["ranges"]):]
    owed = 0 if published else KILL_BLOB_BYTES - (left or 0)
    wanted = [] if published else [f"bytes={left}-" if left else None]
    # Of a download that was whole but not yet published, no byte is left to send.
    if fetched != owed or (ranges != wanted and owed):
        raise Failed(f"with {left} bytes at hand (published: {published}) the next pull fetched "
                     f"{fetched} bytes in ranges {ranges}, expected {owed} in {wanted}")
    wrong = wrong_files(cache)
    if wrong:
        raise Failed(f"after the next pull there are wrong files under blobs/: {wrong}")
    # The next round's hashes need not read this blob again.
    for kind in ["blobs", "partial"]:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(cache, kind, *digest.split(":")))
    return 0 if published else (left or 0)


def kill_loop(bench, upstream, count):
    """`count` kills on one cache directory; tells how it went."""
    print(f"# kill -9, {count} times: SEED={SEED} repeats the moments", flush=True)
    chance, cache = random.Random(SEED), bench.fresh("cache-killed")
    resumed = [kill_once(upstream, cache, chance) for _ in range(count)]
    in_between = [kept for kept in resumed if kept]
    print(f"# {len(in_between)} of {count} kills left a part, "
          f"{sum(resumed) / 1024 / 1024:.0f} MiB were resumed and not fetched again", flush=True)
    return in_between


# === CPU ===


def descriptor_names(cache):
    """The names in the cache's index.json."""
    with open(os.path.join(cache, "index.json")) as file:
        manifests = json.load(file)["manifests"]
    key = "org.opencontainers.image.ref.name"
    return {entry["annotations"][key]: entry["digest"] for entry in manifests}


def host_folder(upstream):
    """The registry as the cache names it."""
    return re.sub("^https?://", "", upstream.env.get("ECR", ECR_HOST))
