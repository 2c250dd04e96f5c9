"""Long lists, page by page: 1000 tags and 2500 repositories, in ECR's ways (`front.py`), as clients
see them who come directly, through a reverse proxy that ends TLS, and through a port mapping.

Every `Link` must lead back the way the client came, and every name must come exactly once.
"""

import functools
import hashlib
import json
import os
import re
import socket
import threading

from checks import check, redirecting_files, want
from clients import cert_dir
from parts import Host, free_port, skopeo, wait_port

TAGS, REPOSITORIES = 1000, 2500
REPOSITORY = "lists/tagged"
# ECR's own pages have 100 names, and at most 1000.
PAGE, PAGE_MAX = 100, 1000


class Lists:
    """A registry with many names in it, what makes it like ECR, and a proxy before it."""

    def __init__(self, fixtures, cached):
        bench = fixtures.bench
        self.bench, self.authority = bench, fixtures.authority
        storage = bench.fresh("storage-lists")
        self.tags = {f"v{number}.{number % 7}-rc_{number}" for number in range(TAGS)}
        self.repositories = {REPOSITORY} | {
            f"team-{number % 50}/app.{number}" for number in range(REPOSITORIES - 1)}
        fill(storage, self.tags, self.repositories)
        layers = bench.layer_host(["--files", storage])
        config = {**redirecting_files(storage, layers), "auth": {}}
        self.front = bench.front(bench.registry(config), "--quirks")
        env = {**fixtures.aws.env(), "AWS_ENDPOINT_URL_ECR": self.front.url,
               "ECR": self.front.url}
        env["CACHE_DIR"] = bench.fresh("cache-lists") if cached else "off"
        self.proxy = bench.proxy(env, name="proxy-lists")

    def every_name(self, way):
        """Both lists in pages of several sizes, and the tags as skopeo reads them."""
        for query, page in [("", PAGE), ("?n=333", 333), ("?n=1000", 1000), ("?n=5000", PAGE_MAX)]:
            for target, field, names in [
                (f"/v2/{REPOSITORY}/tags/list", "tags", self.tags),
                ("/v2/_catalog", "repositories", self.repositories),
            ]:
                found, pages = follow(way, target + query, field, page)
                same_names(f"{way.url}{target}{query}", found, names)
                least = -(-len(names) // page)
                want(pages == least, way.url, target, query, "came in", pages, "pages")
        self.tags_for_skopeo(way)

    def tags_for_skopeo(self, way):
        verify = ["--cert-dir", cert_dir(self.bench, way.tls.ca)] if way.tls else \
            ["--tls-verify=false"]
        told = skopeo("list-tags", *verify, f"docker://{way.address}/{REPOSITORY}")
        same_names(f"skopeo at {way.url}", json.loads(told)["Tags"], self.tags)


@functools.cache
def lists(fixtures, cached):
    return Lists(fixtures, cached)


def fill(storage, tags, repositories):
    """A docker-registry's own files, of which it reads the names from the folders'."""
    root = os.path.join(storage, "docker", "registry", "v2", "repositories")
    for repository in repositories:
        os.makedirs(os.path.join(root, repository, "_layers"))
    digest = "sha256:" + hashlib.sha256(b"").hexdigest()
    for tag in tags:
        current = os.path.join(root, REPOSITORY, "_manifests", "tags", tag, "current")
        os.makedirs(current)
        with open(os.path.join(current, "link"), "w") as file:
            file.write(digest)


def follow(way, target, field, page_max):
    """Every name on every page from `target` on, and how many pages there were."""
    found, pages = [], 0
    while target:
        reply = way.get(target)
        want(reply.status == 200, way.url, target, "answered", reply.status, reply.body[:300])
        kind = reply.getheader("Content-Type")
        want(kind.partition(";")[0] == "application/json", target, "is", kind)
        names = json.loads(reply.body)[field]
        want(len(names) <= page_max, target, "has", len(names), "names")
        found, pages = found + names, pages + 1
        link, target = reply.getheader("Link"), None
        if link:
            url = re.fullmatch(r'<([^>]*)>; *rel="?next"?', link).group(1)
            # A relative address leads back whichever way the client came.
            target = url.removeprefix(way.url)
            want(target.startswith("/v2/"), f"a client of {way.url} is led to", url)
    return found, pages


def same_names(where, found, names):
    want(len(found) == len(set(found)), where, "a name twice")
    want(set(found) == names, where, len(names - set(found)), "names missing",
         sorted(set(found) - names)[:5])


# === ways to the proxy ===

# How reverse proxies are set up: all that they say, in nginx's words.
SAID = {
    "the host as it came": """
        proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;""",
    "host and port apart": """
        proxy_set_header Host $host; proxy_set_header X-Forwarded-Proto https;
        proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Forwarded-Port $server_port;""",
    "a host of its own": """
        proxy_set_header X-Forwarded-Proto https;
        proxy_set_header X-Forwarded-Host $http_host;""",
    "in one field": """
        proxy_set_header Host $http_host;
        proxy_set_header Forwarded "for=$remote_addr;host=\\"$http_host\\";proto=$scheme";""",
}


def nginx(bench, tls, proxy, settings=SAID):
    """An nginx that ends TLS, one port for each of the ways to set it up; the process, and the
    ports' addresses."""
    folder = bench.fresh("nginx")
    ways, servers = [], ""
    for said in settings.values():
        ways.append(Host(None, free_port(), tls))
        servers += f"""
            server {{
                listen 127.0.0.1:{ways[-1].port} ssl;
                location / {{ proxy_pass {proxy.url}; {said} }}
            }}"""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    user = "user root;" if os.geteuid() == 0 else ""
    config = os.path.join(folder, "nginx.conf")
    with open(config, "w") as file:
        file.write(f"""
            {user} daemon off; worker_processes 1; pid {folder}/pid; error_log stderr;
            events {{ worker_connections 256; }}
            http {{
                {temporary}
                access_log off; proxy_http_version 1.1;
                ssl_certificate {tls.chain}; ssl_certificate_key {tls.key};
                {servers}
            }}""")
    process = bench.start("nginx", ["nginx", "-e", "stderr", "-c", config])
    wait_port(process, ways[-1].port)
    return process, ways


class PortMapping:
    """Another port of this machine that leads to the proxy, as containers have it: no byte of HTTP
    is read on the way."""

    def __init__(self, target):
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.way = Host(None, self.listener.getsockname()[1])

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self.way

    def __exit__(self, *_):
        # Wakes the thread that accepts, too.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target.port))
            for pair in [(client, server), (server, client)]:
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    @staticmethod
    def _pass_on(source, drain):
        try:
            while data := source.recv(65536):
                drain.sendall(data)
            drain.shutdown(socket.SHUT_WR)
        except OSError:
            pass


# === checks ===


@check("bench")
def lists_page_by_page_directly(fixtures, _bench):
    for cached in [False, True]:
        held = lists(fixtures, cached)
        held.every_name(held.proxy)


@check("bench")
def lists_page_by_page_behind_nginx_with_tls(fixtures, bench):
    for cached in [False, True]:
        held = lists(fixtures, cached)
        process, ways = nginx(bench, held.authority, held.proxy)
        for way in ways:
            held.every_name(way)
        process.stop()


@check("bench")
def lists_page_by_page_through_a_port_mapping(fixtures, _bench):
    for cached in [False, True]:
        held = lists(fixtures, cached)
        with PortMapping(held.proxy) as way:
            held.every_name(way)


@check("bench")
def lists_of_an_outage_lead_back_the_way_the_client_came(fixtures, bench):
    held = Lists(fixtures, cached=True)
    for target, field in [(f"/v2/{REPOSITORY}/tags/list", "tags"),
                          ("/v2/_catalog?n=1000", "repositories")]:
        follow(held.proxy, target, field, PAGE_MAX)
    held.front.process.stop()
    process, ways = nginx(bench, held.authority, held.proxy)
    with PortMapping(held.proxy) as mapped:
        for way in [held.proxy, mapped, *ways]:
            # In the pages that were kept, and in others.
            for query in ["", "?n=1000", "?n=70"]:
                target = f"/v2/{REPOSITORY}/tags/list{query}"
                found, _ = follow(way, target, "tags", PAGE_MAX)
                same_names(way.url + target, found, held.tags)
            found, _ = follow(way, "/v2/_catalog?n=1000", "repositories", PAGE_MAX)
            same_names(way.url + "/v2/_catalog", found, held.repositories)
            held.tags_for_skopeo(way)
    reply = held.proxy.get("/v2/_catalog?n=1000")
    want(reply.getheader("Warning", "").startswith("299 "), reply.getheaders())
    process.stop()
