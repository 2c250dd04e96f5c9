"""The end-to-end checks of a site without a network: the proxy runs where there is no interface at
all, on a cache that is mounted read-only. Its listener comes from outside, as systemd hands it in.
"""

import json
import sys

import cached
from cache_checks import pull_offline
from checks import check, want
from clients import ARCH, CLIENTS, need_root
from images import MIB, Layout
from parts import MANIFESTS, Failed, run

# Listens, and becomes the command behind it.
LISTEN = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[1], sys.argv[1:])
"""
ISOLATE = 'mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; exec "$@"'


def isolated(cache):
    """A command that becomes the proxy, without a network and with a read-only cache."""
    need_root("a namespace without a network")
    return [sys.executable, "-c", LISTEN, "unshare", "--net", "--mount", "sh", "-ec", ISOLATE, cache]


def refusal(*command):
    """What a command says that must be refused."""
    try:
        run(*command)
    except Failed as error:
        return str(error)
    raise Failed(f"not refused: {' '.join(command)}")


@check("bench")
def offline_serves_every_client_without_any_network(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    layout, cache = Layout(bench.fresh("layout")), bench.fresh("cache")
    layout.add_image("plain", [MIB], ARCH)
    layout.add_index("multi", [MIB], [ARCH, "s390x"])
    for tag in ["plain", "multi"]:
        upstream.seed(layout, tag, f"team/{tag}:1")
    proxy = upstream.proxy(cache)
    for tag in ["plain", "multi"]:
        CLIENTS[0].pull(bench, proxy.address, f"team/{tag}:1")
    proxy.process.stop()
    upstream.stop()
    # No credentials, and no registry: what is needed is in the cache.
    gone = {name: "" for name in upstream.env if name.startswith("AWS_")}
    proxy = upstream.proxy(cache, wrap=isolated(cache), OFFLINE="true", **gone)
    pull_offline(bench, proxy, layout, ["plain", "multi"])
    cached.check_answers(proxy, least=2 * 2 * 2 * len(CLIENTS))
    want('"level":"WARN"' not in proxy.process.text(), proxy.process.text())
    says_what_is_missing(bench, proxy, layout)
    want(proxy.process.stop() == 0, "exit code", proxy.process.popen.returncode)


def says_what_is_missing(bench, proxy, layout):
    """Clients show what is missing, how to get it, and why a push is refused."""
    source = ["--src-tls-verify=false", f"docker://{proxy.address}/team/plain:2"]
    said = refusal("skopeo", "copy", *source, f"dir:{bench.fresh('missing')}")
    want("aws-ecr-proxy pull" in said and "OFFLINE=true" in said, said)
    index = json.loads(layout.read(layout.tags["multi"]["digest"]))
    other = next(child for child in index["manifests"]
                 if child["platform"]["architecture"] == "s390x")
    got = proxy.get(f"/v2/team/multi/manifests/{other['digest']}", Accept=MANIFESTS)
    text = got.body.decode()
    want(got.status == 404 and other["digest"] in text, got.status, text)
    want("aws-ecr-proxy pull --platform linux/s390x" in text, text)
    target = f"docker://{proxy.address}/team/new:1"
    said = refusal("skopeo", "copy", "--dest-tls-verify=false",
                   f"oci:{layout.folder}:plain", target)
    want("405" in said or "OFFLINE=true" in said, said)
