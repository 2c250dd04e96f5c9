"""Several registries behind one proxy, under their real names: containerd and ctr name theirs by
`ns`, podman, buildah and skopeo by the path.
"""

import os

import cached
from checks import check, redirecting_files, want
from clients import ARCH, Buildah, Podman, Skopeo, containerd, need_root
from images import MIB, Layout
from parts import ECR_HOST, OTHER_ECR_HOST, PASSWORD, Failed, own_ip, run, skopeo

# Where the names lead while these checks run; nobody else is there.
ADDRESSES = {ECR_HOST: own_ip(1), OTHER_ECR_HOST: own_ip(2)}
STRANGER = "333333333333.dkr.ecr.eu-west-1.amazonaws.com"
BY_PATH = [Skopeo(), Podman(), Buildah()]


class Registries:
    """Two registries with TLS on port 443, each with a second host, and a proxy before them."""

    def __init__(self, fixtures):
        need_root("listening on port 443 under real ECR names")
        bench, tls = fixtures.bench, fixtures.authority
        self.storage, self.layers, self.registries = {}, {}, {}
        for host, ip in ADDRESSES.items():
            self.storage[host] = storage = bench.fresh("storage-named")
            self.layers[host] = bench.layer_host(["--files", storage], tls)
            config = redirecting_files(storage, self.layers[host])
            registry = bench.registry(config, "registry-named", tls, (ip, 443))
            registry.address = f"{ip}:443"
            self.registries[host] = registry
        env = {
            **fixtures.aws.env(), "AWS_CA_BUNDLE": tls.ca,
            "ECR": ",".join(ADDRESSES),
            "BLOB_HOSTS": ",".join(layers.address for layers in self.layers.values()),
            "CACHE_DIR": bench.fresh("cache-named"), "CACHE_TAG_TTL": "0s",
        }
        self.proxy = bench.proxy(env, name="proxy-named",
                                 wrap=cached.real_names(bench, ADDRESSES))

    def seed(self, host, layout, tag, name):
        """Puts an image into one of the registries, past the proxy."""
        skopeo("copy", "--all", "--dest-creds", f"AWS:{PASSWORD}", "--dest-tls-verify=false",
               f"oci:{layout.folder}:{tag}", f"docker://{self.registries[host].address}/{name}")

    def downloads(self):
        return {host: layers.seen()["gets"] for host, layers in self.layers.items()}

    def has(self, host, digest, name):
        """Whether a registry's own files hold a blob of a repository."""
        return os.path.exists(os.path.join(
            self.storage[host], "docker/registry/v2/repositories", name, "_layers",
            *digest.split(":")))

    def end(self):
        for part in [self.proxy, *self.registries.values(), *self.layers.values()]:
            part.process.stop()


def two_images(bench):
    """One for each registry, and one for both."""
    layout = Layout(bench.fresh("layout"))
    for tag in [*ADDRESSES, "shared"]:
        layout.add_image(tag, [MIB, 1000], ARCH)
    return layout


def pull_all(bench, proxy, layout, name):
    """The same name of both registries, by every client: each gets its own registry's image."""
    def check_got(who, host, got):
        for other in ADDRESSES:
            needed = layout.blobs(layout.tags[other]["digest"])[1]
            want((needed in got) == (host == other), who, host, name, "brought", got)

    for client in BY_PATH:
        for host in ADDRESSES:
            got = client.pull(bench, proxy.address, f"{host}/{name}")
            check_got(client.name, host, got)
    for host in ADDRESSES:
        with containerd(bench, dict.fromkeys(ADDRESSES, proxy.address)) as (ctr, hosts):
            run(*ctr, "images", "pull", "--snapshotter", "native", *hosts, f"{host}/{name}",
                timeout=120)
            got = set(run(*ctr, "content", "ls", "-q").decode().split())
        check_got("containerd", host, got)


@check("bench")
def registries_are_told_apart_by_ns_and_by_path(fixtures, bench):
    held, layout = Registries(fixtures), two_images(bench)
    proxy = held.proxy
    for host in ADDRESSES:
        held.seed(host, layout, host, "team/app:1")
        held.seed(host, layout, "shared", "team/shared:1")
    pull_all(bench, proxy, layout, "team/app:1")

    # What one registry brought need not come again from the other.
    client = Skopeo()
    client.pull(bench, proxy.address, f"{ECR_HOST}/team/shared:1")
    before = held.downloads()
    got = client.pull(bench, proxy.address, f"{OTHER_ECR_HOST}/team/shared:1")
    want(set(layout.blobs(layout.tags["shared"]["digest"])) <= got, got)
    want(held.downloads() == before, "blobs came twice:", before, held.downloads())

    # A closed list: a stranger's name is never called.
    with containerd(bench, {STRANGER: proxy.address}) as (ctr, hosts):
        try:
            run(*ctr, "images", "pull", *hosts, f"{STRANGER}/team/app:1", timeout=60)
        except Failed as error:
            want("not found" in str(error), "refused in another way:", error)
        else:
            raise Failed("pulled from a registry that is not in the list")
    reply = proxy.get(f"/v2/team/app/manifests/1?ns={OTHER_ECR_HOST}")
    want(reply.getheader("OCI-Namespace") == OTHER_ECR_HOST, reply.getheaders())

    # A push by path arrives where the path says, and nowhere else.
    digest = client.push(bench, proxy.address, layout, "shared", f"{OTHER_ECR_HOST}/team/pushed:1")
    layer = layout.blobs(digest)[-1]
    want(held.has(OTHER_ECR_HOST, layer, "team/pushed"), "the push did not arrive")
    want(not held.has(ECR_HOST, layer, "team/pushed"), "the push arrived at the other one")

    for host in ADDRESSES:
        held.registries[host].process.stop()
    pull_all(bench, proxy, layout, "team/app:1")
    held.end()
