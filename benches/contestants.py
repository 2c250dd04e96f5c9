"""The servers of the bench: one cheap upstream, and the contestants in front of it. Owns their
settings, what they used of processor and memory, and nothing of what is measured.

The upstream is nginx with TLS and a P-256 certificate: a registry that answers blobs with a 307 to a
second host name, as ECR does. Its own processor time is nobody's.
"""

import hashlib
import os
import random
import shutil
import subprocess
import tempfile
import time

from parts import Failed, Proxy, free_port, proxy_command, wait_listening, wait_port, wait_until

REPOSITORY = "team/bench"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
# All connections of a work come from one address.
CONNECTIONS = 4096
# Room in memory for the upstream's files, so that only the contestants write to the disk.
MEMORY_FOLDER, MEMORY_NEEDED = "/dev/shm", 2 << 30
# Both of nginx's servers, and ours; nginx closes after 1,000 requests otherwise.
NGINX_COMMON = """
    {user} daemon off; worker_processes auto; worker_rlimit_nofile 16384; pid {folder}/pid;
    error_log {folder}/error.log;
    events {{ worker_connections 8192; }}
    http {{
        client_body_temp_path {bodies}; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
        uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
        access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
        keepalive_timeout 300s; client_max_body_size 0;
        ssl_certificate {tls.chain}; ssl_certificate_key {tls.key}; ssl_buffer_size 16k;
        ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:sessions:1m;
        {rest}
    }}"""

UPSTREAM = """
        log_format plain '$request_method $uri $status';
        add_header Docker-Distribution-Api-Version registry/2.0 always;
        server {{
            listen 127.0.0.1:{registry} ssl backlog=4096;
            location = /v2/ {{ default_type application/json; return 200 "{{}}"; }}
            location ~ ^/v2/.+/blobs/sha256:(?<hex>[0-9a-f]+)$ {{
                return 307 https://127.0.0.1:{storage}/blobs/$hex?X-Amz-Signature=0;
            }}
            location ~ ^/v2/.+/manifests/ {{
                root {folder}; try_files /manifest =404; default_type {kind};
                add_header Docker-Content-Digest {digest};
            }}
        }}
        server {{
            listen 127.0.0.1:{storage} ssl backlog=4096;
            location /blobs/ {{ root {folder}; access_log {folder}/gets.log plain; }}
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
            proxy_set_header Host localhost:{registry}; proxy_request_buffering off;
            proxy_ssl_name localhost; proxy_ssl_server_name on;
            {cache}
            location / {{
                proxy_pass https://registry;
                proxy_intercept_errors on; error_page 307 = @storage;
            }}
            location @storage {{
                set $there $target;
                proxy_set_header Host 127.0.0.1:{storage};
                proxy_set_header Connection "";
                proxy_pass https://storage$there;
            }}
        }}"""


def start_nginx(bench, name, folder, bodies=None, **rest):
    """Starts nginx with `rest`, the inner part of its configuration."""
    config = os.path.join(folder, "nginx.conf")
    user = "user root;" if os.geteuid() == 0 else ""
    with open(config, "w") as file:
        file.write(NGINX_COMMON.format(
            user=user, folder=folder, bodies=bodies or f"{folder}/bodies", **rest))
    return bench.start(name, ["nginx", "-e", f"{folder}/error.log", "-c", config])


class Upstream:
    """The registry and the host of its blobs; what was fetched from it is in a log."""

    def __init__(self, bench):
        self.tls = bench.authority()
        self.registry, self.storage = free_port(), free_port()
        roomy = os.path.isdir(MEMORY_FOLDER) and \
            shutil.disk_usage(MEMORY_FOLDER).free > MEMORY_NEEDED
        self.folder = tempfile.mkdtemp(
            prefix="aws-ecr-proxy-bench-", dir=MEMORY_FOLDER if roomy else bench.folder)
        os.chmod(self.folder, 0o755)
        os.mkdir(os.path.join(self.folder, "blobs"))
        self.base = b""
        self.numbers = 0
        self.manifest = self.write_manifest()
        self.process = start_nginx(bench, "upstream", self.folder, tls=self.tls,
                                   rest=UPSTREAM.format(registry=self.registry, storage=self.storage,
                                                        folder=self.folder, kind=MANIFEST_TYPE,
                                                        digest=self.manifest))
        wait_port(self.process, self.storage)

    def write_manifest(self):
        """One manifest of ten layers, which every tag means; its digest."""
        layers = ", ".join(
            '{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 1, '
            f'"digest": "sha256:{number:064x}"}}' for number in range(10))
        text = (f'{{"schemaVersion": 2, "mediaType": "{MANIFEST_TYPE}", "config": {{"mediaType": '
                f'"application/vnd.oci.image.config.v1+json", "size": 2, '
                f'"digest": "sha256:{"a" * 64}"}}, "layers": [{layers}]}}')
        with open(os.path.join(self.folder, "manifest"), "w") as file:
            file.write(text)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def add_blob(self, size):
        """Puts a blob that was never there into the upstream; its digest."""
        if len(self.base) < size:
            # Python makes fewer than 256 MiB at a time.
            self.base = b"".join(random.Random(1).randbytes(1 << 20) for _ in range(-(-size >> 20)))
        self.numbers += 1
        data = b"%016d" % self.numbers + self.base[16:size]
        name = hashlib.sha256(data).hexdigest()
        with open(os.path.join(self.folder, "blobs", name), "wb") as file:
            file.write(data)
        return "sha256:" + name

    def remove_blob(self, digest):
        os.remove(os.path.join(self.folder, "blobs", digest.removeprefix("sha256:")))

    def gets(self):
        """How many GETs of blobs came."""
        try:
            with open(os.path.join(self.folder, "gets.log")) as file:
                return sum(line.startswith("GET ") for line in file)
        except FileNotFoundError:
            return 0

    def close(self):
        self.process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Contestant:
    """A running server: its doors, and what it used."""

    def __init__(self, process, port, tls_port=None):
        self.process, self.port, self.tls_port = process, port, tls_port

    def pids(self):
        pid = self.process.pid
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [pid, *map(int, file.read().split())]

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


def our_settings(upstream, cache, **more):
    """Our settings for this upstream; metrics are on unless told otherwise."""
    return {
        "ECR": f"https://localhost:{upstream.registry}", "UPSTREAM_AUTH": "none",
        "AWS_CA_BUNDLE": upstream.tls.ca, "BLOB_HOSTS": f"127.0.0.1:{upstream.storage}",
        "LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": "0", "CACHE_DIR": cache, "CACHE_TAG_TTL": "1h",
        "MAX_CONNECTIONS": str(CONNECTIONS), "MAX_CONNECTIONS_PER_PEER": str(CONNECTIONS), **more,
    }


def start_ours(bench, upstream, cache=None, tls=False, **more):
    """The proxy; with `tls` its one door speaks TLS."""
    settings = our_settings(upstream, cache or bench.fresh("cache-ours"), **more)
    if tls:
        settings.update(ENABLE_SSL="true", SSL_CERTIFICATE=upstream.tls.chain,
                        SSL_KEY=upstream.tls.key)
    process = bench.start("ours", proxy_command(), settings)
    port = wait_listening(process)
    proxy = Proxy(process, port, upstream.tls if tls else None)
    wait_until(process, "/readyz 200", lambda: proxy.get("/readyz").status == 200)
    return Contestant(process, port, port if tls else None)


def start_nginx_proxy(bench, upstream, cached=True, valid="1d", **_):
    """nginx with `proxy_cache`, or passing everything through."""
    folder, port, tls_port = bench.fresh("nginx"), free_port(), free_port()
    cache_path = f"""proxy_cache_path {folder}/cache levels=1:2 keys_zone=bench:64m max_size=40g
                     use_temp_path=off inactive=1d;"""
    cache = f"""proxy_cache bench; proxy_cache_key $uri; proxy_cache_lock on;
                proxy_cache_valid 200 {valid}; proxy_cache_revalidate on;"""
    if not cached:
        cache_path, cache = "", "proxy_max_temp_file_size 0;"
    rest = NGINX.format(registry=upstream.registry, storage=upstream.storage, port=port,
                        tls_port=tls_port, cache_path=cache_path, cache=cache)
    process = start_nginx(bench, "nginx", folder, tls=upstream.tls, rest=rest)
    wait_port(process, port)
    return Contestant(process, port, tls_port)


def start_registry(bench, upstream, **_):
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


def version_of(*command):
    """The first line that a command says of its version."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise Failed(f"no {command[0]}: run `tests/e2e/setup measure test`") from None
    return (done.stdout + done.stderr).strip().splitlines()[0]
