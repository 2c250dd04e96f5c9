"""Images of other registries, kept under a prefix of this one as a pull-through cache rule does:
containerd, podman and skopeo mirror docker.io and quay.io, whose names they send or leave out.
"""

import os

import cached
from checks import check, want
from clients import ARCH, containerd, storage
from images import MIB, Layout
from parts import run, skopeo

PULL_SECONDS = 120
# The image's own name, and where it is kept.
IMAGES = {
    "docker.io/library/alpine:3": "docker-hub/library/alpine:3",
    "quay.io/coreos/etcd:3": "quay/coreos/etcd:3",
}
PREFIXES = {"docker.io": "docker-hub", "quay.io": "quay"}
NAMESPACES = ",".join(f"{origin}={prefix}" for origin, prefix in PREFIXES.items())


def tag_of(kept):
    """The tag in the layout: the prefix."""
    return kept.partition("/")[0]


def pull_with_containerd(bench, layout, mirrors):
    """`mirrors`: where each origin is asked."""
    for image, kept in IMAGES.items():
        with containerd(bench, mirrors) as (ctr, hosts):
            run(*ctr, "images", "pull", "--snapshotter", "native", *hosts, image,
                timeout=PULL_SECONDS)
            got = set(run(*ctr, "content", "ls", "-q").decode().split())
        expected = set(layout.blobs(layout.tags[tag_of(kept)]["digest"]))
        want(expected <= got, "containerd", mirrors, image, "lacks", expected - got)


def registries_conf(bench, address):
    """What podman, CRI-O and skopeo read: a mirror for each origin, and no way past it."""
    path = os.path.join(bench.fresh("registries"), "registries.conf")
    with open(path, "w") as file:
        for origin, prefix in PREFIXES.items():
            file.write(f'[[registry]]\nprefix = "{origin}"\nlocation = "{address}/{prefix}"\n'
                       "insecure = true\n")
    return path


def pull_with_podman_and_skopeo(bench, address):
    conf = registries_conf(bench, address)
    for image in IMAGES:
        skopeo("--registries-conf", conf, "copy", f"docker://{image}",
               f"dir:{bench.fresh('mirrored')}")
        with storage(bench, "podman") as (podman, _, call):
            call("env", f"CONTAINERS_REGISTRIES_CONF={conf}", *podman, "pull", "--quiet", image)


@check("bench")
def images_of_other_registries_come_by_prefix_and_by_namespaces(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    layout = Layout(bench.fresh("layout"))
    for kept in IMAGES.values():
        layout.add_image(tag_of(kept), [MIB, 1000], ARCH)
        upstream.seed(layout, tag_of(kept), kept)

    # hosts.toml with override_path, as the path already leads there; `ns` names the origin.
    plain = upstream.proxy(bench.fresh("cache"))
    by_path = {origin: f"{plain.address}/v2/{prefix}" for origin, prefix in PREFIXES.items()}
    pull_with_containerd(bench, layout, by_path)
    pull_with_podman_and_skopeo(bench, plain.address)
    asked = [line["path"] for line in cached.requests_in(plain)]
    want(any("ns=docker.io" in path for path in asked), "containerd sent no ns:", asked)

    # A plain server, where NAMESPACES says where the images are. With both, nothing is doubled.
    mapped = upstream.proxy(bench.fresh("cache"), NAMESPACES=NAMESPACES)
    pull_with_containerd(bench, layout, dict.fromkeys(PREFIXES, mapped.address))
    by_path = {origin: f"{mapped.address}/v2/{prefix}" for origin, prefix in PREFIXES.items()}
    pull_with_containerd(bench, layout, by_path)
    head = mapped.request("HEAD", "/v2/library/alpine/manifests/3?ns=docker.io")
    want(head.status == 200, "HEAD by ns answered", head.status)
    want(head.getheader("OCI-Namespace") == "docker.io", head.getheaders())
    for proxy in (plain, mapped):
        proxy.process.stop()
    upstream.stop()
