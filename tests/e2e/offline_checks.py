"""The end-to-end checks of a site without a network: the proxy runs where there is no interface at
all, on a cache that is mounted read-only. Its listener comes from outside, as systemd hands it in.
"""

import json
import os
import sys

import cached
from cache_checks import pull_offline
from checks import check, want
from clients import ARCH, CLIENTS, need_root
from images import MIB, Layout
from parts import MANIFESTS, Failed, proxy_command, run, skopeo

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


@check("bench")
def images_are_carried_to_a_site_without_a_network(fixtures, bench):
    """By export and import alone: a multi-arch image, its signature, a later delta, and a layout of
    skopeo's."""
    upstream = cached.Upstream(bench, "files")
    layout, here, site = Layout(bench.fresh("layout")), bench.fresh("cache"), bench.fresh("site")
    for tag in ["first", "later"]:
        layout.add_index(tag, [MIB], [ARCH, "s390x"])
        upstream.seed(layout, tag, f"team/{tag}:1")
    layout.add_image("signature", [MIB], ARCH)
    signature = layout.tags["first"]["digest"].replace(":", "-") + ".sig"
    upstream.seed(layout, "signature", f"team/first:{signature}")

    def command(cache, *words):
        env = {**os.environ, **upstream.env, "CACHE_DIR": cache}
        return run(*proxy_command(), *words, env=env, timeout=120).decode()

    folder = bench.fresh("carried")
    base, delta = os.path.join(folder, "base.tar"), os.path.join(folder, "delta.tar")
    command(here, "pull", "team/first:1")
    command(here, "export", "team/first:1", "--to", base)
    command(here, "pull", "team/later:1")
    command(here, "export", "team/first:1", "team/later:1", "--since", base, "--to", delta)
    upstream.stop()
    want(os.path.getsize(base) > 3 * MIB > os.path.getsize(delta), "the delta repeats the base")
    for archive in [base, delta]:
        command(site, "import", archive)
    name = f"{upstream.registry.address}/team/first:1"
    shown = json.loads(skopeo("inspect", "--raw", f"oci-archive:{base}:{name}"))
    want(len(shown["manifests"]) == 2, shown)
    skopeo("copy", "--all", f"oci:{layout.folder}:signature", f"oci-archive:{folder}/made.tar:any")
    command(site, "import", f"{folder}/made.tar", "--as", f"{upstream.registry.address}/team/made:1")
    checked = command(site, "verify")
    want(checked.count("complete") >= 3, checked)
    gone = {name: "" for name in upstream.env if name.startswith("AWS_")}
    proxy = upstream.proxy(site, wrap=isolated(site), OFFLINE="true", **gone)
    layout.tags["made"] = layout.tags["signature"]
    pull_offline(bench, proxy, layout, ["first", "later", "made"])
    pulled = CLIENTS[0].pull(bench, proxy.address, f"team/first:{signature}")
    want(layout.tags["signature"]["digest"] in pulled, pulled)
    want(proxy.process.stop() == 0, "exit code", proxy.process.popen.returncode)
