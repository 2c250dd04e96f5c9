"""The servers of the bench: one cheap upstream, and the contestants in front of it. Owns their
settings, what they used of processor and memory, and nothing of what is measured.

The upstream is nginx with TLS and a P-256 certificate: a registry that answers blobs with a 307 to a
second host name, as ECR does. Its own processor time is nobody's.
"""

import functools
import hashlib
import os
import random
import shutil
import tempfile
import time

from parts import (
    Failed,
    Proxy,
    basic,
    free_port,
    proxy_command,
    wait_listening,
    wait_port,
    wait_until,
)

REPOSITORY = "team/bench"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
# All connections of a work come from one address.
CONNECTIONS = 4096
# Room in memory for the upstream's files, so that only the contestants write to the disk.
MEMORY_FOLDER, MEMORY_NEEDED = "/dev/shm", 2 << 30
# What a small blob and its link take there: a page and an inode each.
BLOB_ROOM = 10_000
NGINX_ANY = """
    {user} daemon off; worker_processes auto; worker_rlimit_nofile 16384; pid {folder}/pid;
    error_log {folder}/error.log;
    events {{ worker_connections 8192; }}
    http {{
        client_body_temp_path {folder}/b; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
        uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
        access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
        keepalive_timeout 300s; client_max_body_size 0;
        ssl_certificate {tls.chain}; ssl_certificate_key {tls.key}; ssl_buffer_size 16k;
        ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:sessions:1m;
        {rest}
    }}"""

# One of its registries wants a token. What is pushed is read whole and dropped.
REGISTRY = """
        server {{
            listen 127.0.0.1:{port} ssl backlog=4096;
            {rule}
            location = /v2/ {{ default_type application/json; return 200 "{{}}"; }}
            location ~ ^/v2/.+/blobs/sha256:(?<hex>[0-9a-f]+)$ {{
                return 307 https://127.0.0.1:{storage}/blobs/$hex?X-Amz-Signature=0;
            }}
            location ~ ^/v2/.+/manifests/ {{
                root {folder}; try_files /manifest =404; default_type {kind};
                add_header Docker-Content-Digest {digest};
            }}
            location ~ ^/v2/.+/blobs/uploads/ {{
                client_body_buffer_size 1m; proxy_pass_request_body off;
                proxy_set_header Content-Length ""; proxy_pass http://unix:{folder}/sink;
            }}
        }}"""

STORAGE = """
        server {{
            listen 127.0.0.1:{storage} ssl backlog=4096;
            location /blobs/ {{ root {folder}; access_log {folder}/asked.log plain; }}
        }}
        server {{
            listen unix:{folder}/sink;
            absolute_redirect off;
            add_header Location /v2/{repository}/blobs/uploads/1 always;
            if ($request_method = PUT) {{ return 201; }}
            return 202;
        }}"""

# The fastest settings that we know for a proxy of ECR: connections to the upstream are kept, and a blob
# is stored under the key that the first look-up has, so that a hit needs no redirect. nginx logs
# nothing, while ours writes a line for each request.
NGINX = """
        upstream registry {{ server 127.0.0.1:{registry}; keepalive 64; }}
        upstream storage {{ server 127.0.0.1:{storage}; keepalive 64; }}
        map $upstream_http_location $target {{ "~^https://[^/]+(?<rest>/.*)$" $rest; }}
        {cache_path}
        server {{
            listen 127.0.0.1:{port} backlog=4096;
            listen 127.0.0.1:{tls_port} ssl backlog=4096;
            proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header Host localhost:{registry}; proxy_set_header Authorization "{token}";
            proxy_request_buffering off;
            proxy_ssl_name localhost; proxy_ssl_server_name on;
            {cache}
            location / {{
                proxy_pass https://registry;
                proxy_intercept_errors on; error_page 307 = @storage;
            }}
            location @storage {{
                set $there $target;
                proxy_set_header Host 127.0.0.1:{storage};
                proxy_set_header Connection ""; proxy_set_header Authorization "";
                proxy_pass https://storage$there;
            }}
        }}"""


def start_nginx(bench, name, folder, tls, rest):
    """Starts nginx with `rest`, the inner part of its configuration."""
    config = os.path.join(folder, "nginx.conf")
    user = "user root;" if os.geteuid() == 0 else ""
    with open(config, "w") as file:
        file.write(NGINX_ANY.format(
            user=user, folder=folder, tls=tls, rest=rest))
    return bench.start(name, ["nginx", "-e", f"{folder}/error.log", "-c", config])


class Upstream:
    """The registry, the host of its blobs, and AWS; what they were asked is in a log."""

    def __init__(self, bench):
        self.bench, self.tls = bench, bench.authority()
        self.registry, self.guarded, self.storage = free_port(), free_port(), free_port()
        roomy = os.path.isdir(MEMORY_FOLDER) and \
            shutil.disk_usage(MEMORY_FOLDER).free > MEMORY_NEEDED
        self.folder = tempfile.mkdtemp(
            prefix="aws-ecr-proxy-bench-", dir=MEMORY_FOLDER if roomy else bench.folder)
        os.chmod(self.folder, 0o755)
        os.mkdir(self.path("blobs"))
        self.base, self.numbers = b"", 0
        self.log, self.gets = None, {"blobs": 0, "v2": 0}
        self.manifest = self.write_manifest()
        self.process = start_nginx(bench, "upstream", self.folder, self.tls, self.settings())
        wait_port(self.process, self.storage)

    def settings(self):
        """The inner part of its configuration."""
        common = {"folder": self.folder, "storage": self.storage, "kind": MANIFEST_TYPE,
                  "digest": self.manifest, "repository": REPOSITORY}
        guard = 'if ($http_authorization = "") { return 401; }'
        log = f"access_log {self.folder}/asked.log plain;"
        return ("log_format plain '$request_method $request_uri $status';"
                "add_header Docker-Distribution-Api-Version registry/2.0 always;"
                + REGISTRY.format(port=self.registry, rule=log, **common)
                + REGISTRY.format(port=self.guarded, rule=guard, **common)
                + STORAGE.format(**common))

    @functools.cached_property
    def aws(self):
        """Where the token comes from."""
        return self.bench.moto(enforce=True)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def write_manifest(self):
        """One manifest of ten layers, which every tag means; its digest."""
        layers = ", ".join(
            '{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 1, '
            f'"digest": "sha256:{number:064x}"}}' for number in range(10))
        text = (f'{{"schemaVersion": 2, "mediaType": "{MANIFEST_TYPE}", "config": {{"mediaType": '
                f'"application/vnd.oci.image.config.v1+json", "size": 2, '
                f'"digest": "sha256:{"a" * 64}"}}, "layers": [{layers}]}}')
        with open(self.path("manifest"), "w") as file:
            file.write(text)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def make_blob(self, size):
        """Bytes that nobody has seen before, and their digest."""
        if len(self.base) < size:
            self.base = b"".join(random.Random(1).randbytes(1 << 20) for _ in range(-(-size >> 20)))
        self.numbers += 1
        data = b"%016d" % self.numbers + self.base[16:size]
        return "sha256:" + hashlib.sha256(data).hexdigest(), data

    def add_blob(self, size):
        """Puts such a blob into the registry; its digest."""
        digest, data = self.make_blob(size)
        with open(self.path("blobs", digest.removeprefix("sha256:")), "wb") as file:
            file.write(data)
        return digest

    def asked(self, what="blobs"):
        """How many requests for blobs came, or for `v2`, which is all else."""
        self.log = self.log or open(self.path("asked.log"))
        for line in self.log:
            self.gets[line.split("/")[1]] += 1
        return self.gets[what]

    def close(self):
        self.process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def title_of(pid):
    """What a process calls itself; one that has just ended was a loader."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return "loader"


class Contestant:
    """A running server: its doors, and what it used."""

    def __init__(self, process, port, tls_port=None):
        self.process, self.port, self.tls_port = process, port, tls_port

    def pids(self):
        """Its processes, without nginx's cache loader: that ends after a minute, and does nothing."""
        pid = self.process.pid
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            found = [pid, *map(int, file.read().split())]
        return [pid for pid in found if "loader" not in title_of(pid)]

    def cpu(self):
        """Seconds of processor time of all its processes, also of their threads that have ended: the
        process clocks of clock_gettime(2), in nanoseconds."""
        return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in self.pids()) / 1e9

    def resident(self):
        """Resident MB of all its processes; what they share counts once."""
        own, shared = 0, 0
        for pid in self.pids():
            with open(f"/proc/{pid}/smaps_rollup") as file:
                fields = {line.split(":")[0]: int(line.split()[1]) for line in list(file)[1:]}
            private = fields["Private_Clean"] + fields["Private_Dirty"]
            own += private
            shared = max(shared, fields["Rss"] - private)
        return (own + shared) / 1024


def our_settings(upstream, cache, tls=False, token=False, **more):
    """Our settings for this upstream; with `token` there is an ECR token."""
    port = upstream.guarded if token else upstream.registry
    settings = {
        "ECR": f"https://localhost:{port}", "AWS_CA_BUNDLE": upstream.tls.ca,
        "BLOB_HOSTS": f"127.0.0.1:{upstream.storage}", "CACHE_DIR": cache, "CACHE_TAG_TTL": "1h",
        "LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": "0",
        "MAX_CONNECTIONS": str(CONNECTIONS), "MAX_CONNECTIONS_PER_PEER": str(CONNECTIONS),
    }
    settings.update(upstream.aws.env() if token else {"UPSTREAM_AUTH": "none"})
    if tls:
        settings.update(ENABLE_SSL="true", SSL_CERTIFICATE=upstream.tls.chain,
                        SSL_KEY=upstream.tls.key)
    return {**settings, **more}


def start_ours(bench, upstream, cache=None, tls=False, token=False, **more):
    """The proxy; with `tls` its one door speaks TLS."""
    cache = cache or bench.fresh("cache-ours")
    process = bench.start("ours", proxy_command(),
                          our_settings(upstream, cache, tls, token, **more))
    port = wait_listening(process)
    proxy = Proxy(process, port, upstream.tls if tls else None)
    wait_until(process, "/readyz 200", lambda: proxy.get("/readyz").status == 200)
    return Contestant(process, port, port)


def start_nginx_proxy(bench, upstream, cached=True, valid="1d"):
    """nginx with `proxy_cache`, or, with a token, passing everything through."""
    folder, port, tls_port = bench.fresh("nginx"), free_port(), free_port()
    cache_path = f"""proxy_cache_path {folder}/cache levels=1:2 keys_zone=bench:64m max_size=40g
                     use_temp_path=off inactive=1d;"""
    cache = f"""proxy_cache bench; proxy_cache_key $uri; proxy_cache_lock on;
                proxy_cache_valid 200 {valid}; proxy_cache_revalidate on;"""
    if not cached:
        cache_path, cache = "", "proxy_max_temp_file_size 0;"
    rest = NGINX.format(registry=upstream.registry if cached else upstream.guarded,
                        token="" if cached else basic(), storage=upstream.storage, port=port,
                        tls_port=tls_port, cache_path=cache_path, cache=cache)
    process = start_nginx(bench, "nginx", folder, upstream.tls, rest)
    wait_port(process, port)
    return Contestant(process, port, tls_port)


def start_registry(bench, upstream):
    """distribution's registry as a pull-through cache."""
    folder, port = bench.fresh("registry"), free_port()
    config = os.path.join(folder, "config.yml")
    with open(config, "w") as file:
        file.write(f"""
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, cache: {{blobdescriptor: inmemory}}}}
http: {{addr: "127.0.0.1:{port}"}}
proxy: {{remoteurl: "https://localhost:{upstream.registry}"}}
""")
    process = bench.start("registry", ["docker-registry", "serve", config],
                          {"SSL_CERT_FILE": upstream.tls.ca, "OTEL_TRACES_EXPORTER": "none"})
    wait_port(process, port)
    return Contestant(process, port)


def fill_cache(bench, upstream, count):
    """Writes the files of a cache with so many small blobs; its folder, and their digests. They are
    in memory where there is room, since a disk takes minutes to remove them."""
    free = shutil.disk_usage(upstream.folder).free
    if free < count * BLOB_ROOM:
        raise Failed(f"{count} blobs need {count * BLOB_ROOM >> 20} MiB in {upstream.folder}, "
                     f"which has {free >> 20} MiB")
    cache = tempfile.mkdtemp(prefix="cache-full-", dir=upstream.folder)
    start_ours(bench, upstream, cache).process.stop()
    blobs = os.path.join(cache, "blobs", "sha256")
    links = os.path.join(cache, "repos", f"localhost:{upstream.registry}", REPOSITORY, "_links")
    for folder in (blobs, links):
        os.makedirs(folder, exist_ok=True)
    digests = []
    for number in range(count):
        data = b"%07d" % number
        name = hashlib.sha256(data).hexdigest()
        for folder, content in ((blobs, data), (links, b"7\n")):
            with open(os.path.join(folder, name), "wb", buffering=0) as file:
                file.write(content)
        digests.append("sha256:" + name)
    return cache, digests


START = {
    "ours": start_ours,
    "nginx": start_nginx_proxy,
    "pass": functools.partial(start_nginx_proxy, cached=False),
    "registry": start_registry,
}
