"""Replicas behind the balancers of deploy/replicas: each blob comes from the registry once, and no
client fails while a replica is killed, comes back, and another one joins.
"""

import collections
import hashlib
import http.client
import json
import os
import re
import socket
import threading
import time

from checks import check, want
from hostile_checks import Scripted, send
from images import Layout
from parts import CHANCE, ROOT, Failed, free_port, run, skopeo, wait_port, wait_until

FOLDER = os.path.join(ROOT, "deploy", "replicas")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGES = 20
CLIENTS = 50
# What real clients try before they give a layer up (containerd and docker: 5).
TRIES = 5


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_gone(connection):
    """Whether the other side closed."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Shelf:
    """Images that share one layer, each in a repository of its own, and a count of what was asked."""

    def __init__(self):
        self.lock, self.seen = threading.Lock(), collections.Counter()
        self.blobs, self.manifests, self.pause = {}, {}, 0
        base = CHANCE.randbytes(64 * 1024)
        for number in range(IMAGES):
            layers = [base, CHANCE.randbytes(32 * 1024), CHANCE.randbytes(1024)]
            config = json.dumps({"number": number}).encode()
            named = [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                      "digest": digest_of(data), "size": len(data)} for data in layers]
            self.blobs.update((digest_of(data), data) for data in [config, *layers])
            self.manifests[f"team/app{number}"] = json.dumps({
                "schemaVersion": 2, "mediaType": MANIFEST, "layers": named,
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                           "digest": digest_of(config), "size": len(config)},
            }).encode()
        self.base = digest_of(base)

    def answer(self, handler):
        """A registry's answer."""
        path = handler.path.removeprefix("/v2/")
        repository, is_manifest, _ = path.rpartition("/manifests/")
        if is_manifest:
            data = self.manifests[repository]
            fields = [("Content-Type", MANIFEST), ("Docker-Content-Digest", digest_of(data))]
            return send(handler, 200, data, fields)
        digest = path.rpartition("/blobs/")[2]
        if handler.command == "GET":
            time.sleep(self.pause)
            if is_gone(handler.connection):
                # A replica that died meanwhile: nothing was fetched.
                raise ConnectionResetError(digest)
        with self.lock:
            self.seen[handler.command, digest] += 1
        fields = [("Docker-Content-Digest", digest)]
        return send(handler, 200, self.blobs.get(digest, b"{}"), fields)

    def gets(self):
        with self.lock:
            return {digest: self.seen["GET", digest] for digest in self.blobs}


class Client:
    """A client on a connection that it keeps, as long as that lasts."""

    def __init__(self, port):
        self.port, self.connection = port, None
        self.repeats = 0

    def get(self, target):
        """The bytes of a target, tried anew when the connection is cut, as real clients do."""
        for _ in range(TRIES):
            try:
                if not self.connection:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                self.connection.request("GET", target, headers={"Accept": MANIFEST})
                reply = self.connection.getresponse()
                data = reply.read()
                if reply.status == 200:
                    return data
                said = f"{reply.status} {data[:200]}"
            except (OSError, http.client.HTTPException) as error:
                said = repr(error)
            self.connection, self.repeats = None, self.repeats + 1
            time.sleep(0.1)
        raise Failed(f"{target}: {said}")

    def pull(self, shelf, repository):
        """A whole image, every byte of it checked."""
        manifest = self.get(f"/v2/{repository}/manifests/1")
        want(manifest == shelf.manifests[repository], "manifest", manifest[:200])
        named = json.loads(manifest)
        for one in [named["config"], *named["layers"]]:
            data = self.get(f"/v2/{repository}/blobs/{one['digest']}")
            want(data == shelf.blobs[one["digest"]], "blob", one["digest"])


def crowd(port, shelf, repositories, clients, meanwhile=None):
    """Clients that pull all repositories, each in an order of its own; `meanwhile` runs once a
    third of the images were pulled. The tries that clients had to repeat."""
    faults, pulled, repeats = [], threading.Semaphore(0), []

    def work(order):
        client = Client(port)
        try:
            for repository in order:
                client.pull(shelf, repository)
                pulled.release()
        except Exception as error:
            faults.append(error)
            for _ in order:
                pulled.release()
        repeats.append(client.repeats)

    orders = [CHANCE.sample(repositories, len(repositories)) for _ in range(clients)]
    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    if meanwhile:
        for _ in range(clients * len(repositories) // 3):
            pulled.acquire()
        meanwhile()
    for thread in threads:
        thread.join()
    want(not faults, f"{len(faults)} clients failed:", *faults[:3])
    return sum(repeats)


class Site:
    """Replicas, the last of which joins later, behind a balancer with the configuration of deploy/."""

    def __init__(self, bench, env, count):
        self.bench, self.env, self.replicas = bench, env, []
        self.ports = [free_port() for _ in range(count)]
        self.caches = [bench.fresh("replica-cache") for _ in self.ports]
        self.replicas = [self.start(number) for number in range(3)]
        self.port = free_port()

    def start(self, number):
        env = {"UPSTREAM_AUTH": "none", "LOG_LEVEL": "INFO", "CACHE_DIR": self.caches[number],
               "LISTEN_PORT": str(self.ports[number]), **self.env}
        return self.bench.proxy(env, name=f"replica-{number}")

    def kill(self, number):
        self.replicas[number].process.popen.kill()
        self.replicas[number].process.popen.wait()

    def config(self, name, server, bind):
        """A file of deploy/replicas with this run's ports in the place of its own."""
        with open(os.path.join(FOLDER, name)) as file:
            text = file.read()
        lines = re.findall(server, text, re.M)
        want(len(lines) == 3, name, lines)
        own = [re.sub(r"10\.0\.0\.11:8080", f"127.0.0.1:{port}", lines[0]) for port in self.ports]
        own = [line.replace("replica-1", f"replica-{number}") for number, line in enumerate(own)]
        text = text.replace(lines[0], "\n".join(own))
        for line in lines[1:]:
            text = text.replace(line + "\n", "")
        want(bind in text, bind)
        text = text.replace(bind, bind.replace(":8080", "8080").replace(
            "8080", f"127.0.0.1:{self.port}"))
        # Lost and found sooner than in life, so that the check is short.
        text = text.replace("inter 2s", "inter 200ms").replace("fail_timeout=5s", "fail_timeout=1s")
        path = os.path.join(self.bench.fresh("balancer"), name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def haproxy(self):
        path = self.config("haproxy.cfg", r"^  server replica-.*$", "bind :8080")
        run("haproxy", "-c", "-f", path)
        process = self.balancer("haproxy", ["haproxy", "-db", "-f", path])
        if len(self.ports) > len(self.replicas):
            # The one that joins later has a place, and is known to be away.
            wait_until(process, "its check", lambda: "replica-3 is DOWN" in process.text())
        return process

    def nginx(self):
        path = self.config("nginx.conf", r"^    server 10\..*$", "listen 8080")
        with open(path) as file:
            text = file.read()
        folder = os.path.dirname(path)
        # Where it may write in a test.
        places = "".join(f"  {name}_temp_path {folder}/{name};\n" for name in
                         ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
        text = text.replace("http {\n", f"http {{\n  access_log off;\n{places}")
        with open(path, "w") as file:
            file.write(f"daemon off;\npid {folder}/pid;\n" + text)
        run("nginx", "-t", "-e", "stderr", "-c", path)
        return self.balancer("nginx", ["nginx", "-e", "stderr", "-c", path])

    def balancer(self, name, command):
        process = self.bench.start(name, command)
        wait_port(process, self.port)
        return process

    def end(self):
        for replica in self.replicas:
            replica.process.stop()


def assert_once(shelf, repositories):
    """Every blob of these came from the registry once; the shared one was proven by HEADs."""
    blobs = {one["digest"] for repository in repositories
             for manifest in [json.loads(shelf.manifests[repository])]
             for one in [manifest["config"], *manifest["layers"]]}
    gets = {digest: count for digest, count in shelf.gets().items() if digest in blobs}
    want(set(gets.values()) == {1}, "asked for more than once:", gets)
    # A replica that holds a blob asks whether another repository has it, too: once and then no
    # more, and each of the clients that come before the answer does so.
    heads = {digest: count for (method, digest), count in shelf.seen.items() if method == "HEAD"}
    want(set(heads) <= {shelf.base}, heads)
    want(sum(heads.values()) <= len(repositories) * 5, heads)


@check("bench")
def three_replicas_behind_haproxy_fetch_each_blob_once_and_one_may_die(_fixtures, bench):
    shelf = Shelf()
    with Scripted(shelf.answer) as registry:
        site = Site(bench, {"ECR": registry.url}, 4)
        balancer = site.haproxy()
        names = sorted(shelf.manifests)
        crowd(site.port, shelf, names[:10], CLIENTS)
        assert_once(shelf, names[:10])
        before = sum(shelf.gets().values())
        shelf.pause = 0.05

        def lose_one():
            site.kill(1)
            time.sleep(0.5)
            site.replicas[1] = site.start(1)

        repeats = crowd(site.port, shelf, names, CLIENTS, meanwhile=lose_one)
        gets = shelf.gets()
        want(max(gets.values()) <= 2, "after a loss:", gets)
        # Half of the blobs were new; of the others only those of the lost replica came again.
        want(sum(gets.values()) - before <= len(gets) * 5 // 4, before, gets)
        want(repeats <= CLIENTS * 2, f"{repeats} tries were repeated")
        site.replicas.append(site.start(3))
        time.sleep(0.5)
        repeats = crowd(site.port, shelf, names, 10)
        moved = sum(shelf.gets().values()) - sum(gets.values())
        want(0 < moved <= len(gets) // 2, f"{moved} of {len(gets)} blobs moved")
        want(repeats == 0, f"{repeats} tries were repeated")
        balancer.stop()
        site.end()


@check("bench")
def three_replicas_behind_nginx_fetch_each_blob_once_and_one_may_die(_fixtures, bench):
    shelf = Shelf()
    with Scripted(shelf.answer) as registry:
        site = Site(bench, {"ECR": registry.url}, 3)
        balancer = site.nginx()
        names = sorted(shelf.manifests)
        crowd(site.port, shelf, names[:10], 10)
        assert_once(shelf, names[:10])
        crowd(site.port, shelf, names, 10, meanwhile=lambda: site.kill(1))
        want(max(shelf.gets().values()) <= 2, "after a loss:", shelf.gets())
        balancer.stop()
        site.end()


@check("bench")
def an_upload_goes_on_at_other_replicas(fixtures, bench):
    storage = bench.fresh("storage-replicas")
    registry = bench.registry({"storage": {"filesystem": {"rootdirectory": storage}}},
                              "registry-replicas", relative=False)
    front = bench.front(registry)
    site = Site(bench, {"UPSTREAM_AUTH": "ecr", **fixtures.aws.env(), "ECR": front.url}, 3)
    balancer = site.haproxy()
    # Each request of one upload at another replica, under the balancer's name.
    host = {"Host": f"127.0.0.1:{site.port}"}
    chunks = [CHANCE.randbytes(100_000) for _ in range(3)]
    begun = site.replicas[0].request("POST", "/v2/team/pushed/blobs/uploads/", b"", host)
    want(begun.status == 202, begun.status, begun.body)
    location = begun.headers["Location"]
    for number, chunk in enumerate(chunks):
        want(location.startswith(f"http://{host['Host']}/v2/team/pushed/"), location)
        target = location.removeprefix(f"http://{host['Host']}")
        at = sum(len(chunk) for chunk in chunks[:number])
        fields = {**host, "Content-Range": f"{at}-{at + len(chunk) - 1}",
                  "Content-Type": "application/octet-stream"}
        patched = site.replicas[(number + 1) % 3].request("PATCH", target, chunk, fields)
        want(patched.status == 202, patched.status, patched.body)
        location = patched.headers["Location"]
    digest = digest_of(b"".join(chunks))
    target = location.removeprefix(f"http://{host['Host']}")
    mark = "&" if "?" in target else "?"
    put = site.replicas[1].request("PUT", f"{target}{mark}digest={digest}", b"", host)
    want(put.status == 201, put.status, put.body)
    got = site.replicas[2].get(f"/v2/team/pushed/blobs/{digest}")
    want(got.body == b"".join(chunks), got.status)
    # A whole push and a pull of its tag through the balancer; the new tag is seen at once.
    layout = Layout(bench.path("layout-replicas"))
    for tag in ["one", "two"]:
        layout.add_image(tag, [50_000, 60_000])
        image = f"docker://127.0.0.1:{site.port}/team/app:latest"
        skopeo("copy", "--dest-tls-verify=false", f"oci:{layout.folder}:{tag}", image)
        said = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", image))
        pushed = json.loads(layout.read(layout.tags[tag]["digest"]))
        want(said["config"] == pushed["config"], said, pushed)
    balancer.stop()
    site.end()
    front.process.stop()
    registry.process.stop()


# Run by the Python that has the packages.
READ_YAML = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"


@check("bench")
def envoys_configuration_sends_each_path_where_the_others_do(_fixtures, _bench):
    with open(os.path.join(FOLDER, "envoy.yaml"), "rb") as file:
        python = os.path.join(ROOT, "tests", ".venv", "bin", "python")
        config = json.loads(run(python, "-c", READ_YAML, input=file.read()))
    resources = config["static_resources"]
    manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    cluster = resources["clusters"][0]
    want(cluster["lb_policy"] == "RING_HASH", cluster)
    want(cluster["health_checks"][0]["http_health_check"]["path"] == "/readyz", cluster)
    digest = digest_of(b"x")
    for route in routes:
        want(route["route"]["cluster"] == cluster["name"], route)
        want(route["route"]["timeout"] == "0s", "a slow pull would be cut", route)
        rewrite = route["route"]["hash_policy"][0]["header"]["regex_rewrite"]
        for path, key in [
            (f"/v2/team/app/blobs/{digest}", digest),
            (f"/v2/other/blobs/{digest}?ns=docker.io", digest),
            ("/v2/team/app/manifests/1.0", "team/app"),
            (f"/v2/team/app/manifests/{digest}", "team/app"),
            ("/v2/team/app/blobs/uploads/", "team/app"),
            ("/v2/team/app/blobs/uploads/x?_state=a/b", "team/app"),
            ("/v2/team/app/tags/list?n=1", "team/app"),
            (f"/v2/team/app/referrers/{digest}", "team/app"),
            ("/v2/", "/v2/"),
            ("/v2/_catalog", "/v2/_catalog"),
        ]:
            found = re.sub(rewrite["pattern"]["regex"], rewrite["substitution"], path)
            want(found == key, path, found)


@check("bench")
def a_simulated_site_asks_for_each_byte_once(_fixtures, _bench):
    def simulate(*arguments):
        script = os.path.join(ROOT, "benches", "simulate.py")
        return json.loads(run("python3", script, "--json", "--nodes", "20", *arguments))

    site = simulate("--bytes", "100000000", "--spread", "1")
    want(site["upstream_bytes"] == 100_000_000, site)
    # A node's own link of 1 Gbit/s is the bound for a few, that of a slow site for all of them.
    want(0.8 <= site["slowest_seconds"] <= 10, site)
    slow = simulate("--bytes", "100000000", "--spread", "1", "--site-link", "0.4", "--replicas", "1")
    want(40 <= slow["slowest_seconds"] <= 80, slow)
    direct = simulate("--bytes", "100000000", "--direct")
    want(direct["upstream_bytes"] == 20 * 100_000_000, direct)


@check("bench")
def haproxys_files_for_hosts_and_for_kubernetes_say_the_same(_fixtures, _bench):
    def lines(path):
        with open(path) as file:
            found = {line.strip() for line in file if line.startswith("  ")}
        return {line for line in found if not line.startswith(("#", "server "))}

    hosts = lines(os.path.join(FOLDER, "haproxy.cfg"))
    cluster = lines(os.path.join(ROOT, "deploy", "kubernetes", "replicas", "haproxy.cfg"))
    names = " resolvers cluster init-addr libc,none"
    cluster = {line.removesuffix(names) for line in cluster}
    want(hosts < cluster, "not for Kubernetes:", hosts - cluster)
    own = {"parse-resolv-conf", "hold valid 5s", "monitor-uri /haproxy-alive"}
    want(cluster - hosts == own, "for Kubernetes alone:", cluster - hosts - own)
