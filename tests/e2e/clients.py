"""Real clients, each with a store of its own for every pull, so that nothing but the proxy caches.

A client's `pull` takes the proxy's address and a name such as `team/app:1` or `team/app@sha256:…`,
and gives back the digests of what arrived; every client has verified them by itself. Its `push`
takes an image of a layout besides and gives back the digest of what was pushed. With `ca` the proxy
is asked by TLS.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import uuid

from parts import ECR_HOST, Failed, run, skopeo, wait_until

# What clients ask an index for, in its own words.
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
# A pull or push that takes longer hangs.
PULL_SECONDS = 120
PUSH_SECONDS = 240


def need_root(what):
    """podman and containerd unpack layers as root, and file systems are mounted by root."""
    if os.geteuid() != 0:
        raise Failed(f"{what} needs root: run the checks as root (sudo -E make e2e)")


def cert_dir(bench, ca):
    """A folder of certificates as skopeo, podman and buildah want it."""
    folder = bench.fresh("certs")
    shutil.copy(ca, os.path.join(folder, "ca.crt"))
    return folder


def verifying(bench, ca, side=""):
    """How skopeo, podman and buildah are told of a server's CA, or that it has no certificate."""
    if ca:
        return [f"--{side}cert-dir", cert_dir(bench, ca)]
    return [f"--{side}tls-verify=false"]


def digest_in(folder, *command, through=run):
    """The digest that a command, called `through`, leaves in its `--digestfile`."""
    path = os.path.join(folder, "digest")
    through(*command[:-2], "--digestfile", path, *command[-2:])
    with open(path) as file:
        return file.read().strip()


class Skopeo:
    """Pulls into a folder."""

    name = "skopeo"

    def pull(self, bench, address, name, ca=None):
        folder = bench.fresh("skopeo")
        skopeo("copy", *verifying(bench, ca, "src-"), f"docker://{address}/{name}", f"dir:{folder}")
        found = set()
        for entry in os.listdir(folder):
            if entry != "version":
                with open(os.path.join(folder, entry), "rb") as file:
                    found.add("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
        return found

    def push(self, bench, address, layout, tag, name, ca=None, docker=False):
        kind = ["--format", "v2s2"] if docker else []
        source, target = f"oci:{layout.folder}:{tag}", f"docker://{address}/{name}"
        return digest_in(bench.fresh("skopeo"), "copy", "--all", *kind,
                         *verifying(bench, ca, "dest-"), source, target, through=skopeo)


class Podman:
    """Pulls into a storage of its own and unpacks."""

    name = "podman"

    def login(self, bench, address, authfile, user, password):
        env = {"PATH": os.environ["PATH"], "HOME": bench.fresh("podman")}
        run("podman", "login", "--tls-verify=false", "--authfile", authfile, "--username", user,
            "--password-stdin", address, input=password.encode(), env=env, timeout=PULL_SECONDS)

    def pull(self, bench, address, name, *options, ca=None):
        with storage(bench, self.name) as (podman, _, call):
            image = f"{address}/{name}"
            call(*podman, "pull", "--quiet", *verifying(bench, ca), *options, image)
            told = call(*podman, "image", "inspect", image)
        inspected = json.loads(told)[0]
        digests = re.findall(r"sha256:[0-9a-f]{64}", " ".join(inspected["RepoDigests"]))
        return {*digests, inspected["Digest"], "sha256:" + inspected["Id"]}

    def push(self, bench, address, layout, tag, name, ca=None, docker=False):
        """An image that was unpacked is packed anew: it has other digests than in the layout."""
        with storage(bench, self.name, layout) as (podman, folder, call):
            source, target = f"oci:{folder}/layout:{tag}", f"docker://{address}/{name}"
            kind = ["--format", "v2s2" if docker else "oci"]
            if layout.is_index(tag):
                call(*podman, "manifest", "create", "pushed")
                call(*podman, "manifest", "add", "--all", "pushed", source)
                image, push = "pushed", ["manifest", "push", "--all"]
            else:
                image = call(*podman, "pull", "--quiet", source).decode().strip()
                push = ["push", "--quiet"]
            return digest_in(bench.fresh("pushed"), *podman, *push, *kind, *verifying(bench, ca), image, target,
                             through=call)


class Buildah(Podman):
    """The same library with other words."""

    name = "buildah"

    def pull(self, bench, address, name, *options, ca=None):
        with storage(bench, self.name) as (buildah, folder, call):
            call(*buildah, "pull", "--quiet", *verifying(bench, ca), *options, f"{address}/{name}")
            with open(os.path.join(folder, "root", "vfs-images", "images.json")) as file:
                image, = json.load(file)
        # Beside manifests and configuration there is an empty file for signatures.
        kept = {name: digest for name, digest in image["big-data-digests"].items()
                if not name.startswith("signature")}
        return {image["digest"], "sha256:" + image["id"], *kept.values()}


class Containerd:
    """Pulls by ECR's own name, which hosts.toml leads to the proxy, and unpacks."""

    name = "containerd"

    def pull(self, bench, address, name, ca=None):
        with containerd(bench, {ECR_HOST: address}, ca) as (ctr, hosts):
            run(*ctr, "images", "pull", "--snapshotter", "native", *hosts, f"{ECR_HOST}/{name}",
                timeout=PULL_SECONDS)
            return set(run(*ctr, "content", "ls", "-q").decode().split())

    def push(self, bench, address, layout, tag, name, ca=None, docker=False):
        """It changes no media types, so an image with docker's must come from elsewhere."""
        with containerd(bench, {ECR_HOST: address}, ca) as (ctr, hosts):
            target = f"{ECR_HOST}/{name}"
            if docker:
                source = f"{ECR_HOST}/{name}-of-skopeo"
                digest = Skopeo().push(bench, address, layout, tag, f"{name}-of-skopeo", ca, docker)
                run(*ctr, "images", "pull", "--snapshotter", "native", "--all-platforms", *hosts,
                    source, timeout=PULL_SECONDS)
            else:
                archive = os.path.join(bench.fresh("archive"), "layout.tar")
                run("tar", "-C", layout.folder, "-cf", archive, ".")
                source, digest = f"pushed:{tag}", layout.tags[tag]["digest"]
                run(*ctr, "images", "import", "--all-platforms", "--no-unpack", "--base-name",
                    "pushed", archive, timeout=PULL_SECONDS)
            push = (*ctr, "images", "push", *hosts, target, source)
            try:
                run(*push, timeout=PUSH_SECONDS)
            except Failed as failed:
                # It seldom fails to read a blob from its own daemon (containerd#5734).
                if "rpc error: code = Internal desc = unexpected EOF" not in str(failed):
                    raise
                run(*push, timeout=PUSH_SECONDS)
            return digest


CLIENTS = [Skopeo(), Podman(), Containerd()]
PUSHERS = [Skopeo(), Podman(), Buildah(), Containerd()]


@contextlib.contextmanager
def storage(bench, program, layout=None):
    """podman or buildah with a storage of its own, the folder it is in, and how it is called. In
    that folder `layout` leads to a layout: both make a name for an image of its path, which not
    every path is fit for."""
    need_root(program)
    home = bench.fresh(program)
    settings = os.path.join(home, ".config", "containers")
    os.makedirs(settings)
    with open(os.path.join(settings, "policy.json"), "w") as file:
        json.dump({"default": [{"type": "insecureAcceptAnything"}]}, file)
    env = {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home}
    # podman takes no run root of more than 50 characters.
    folder = f"/tmp/e2e-{uuid.uuid4().hex[:12]}"
    os.mkdir(folder, mode=0o700)
    try:
        if layout:
            os.symlink(layout.folder, os.path.join(folder, "layout"))
        command = [program, "--root", os.path.join(folder, "root"), "--storage-driver", "vfs",
                   "--runroot", os.path.join(folder, "run")]
        if program == "podman":
            command += ["--tmpdir", os.path.join(folder, "tmp")]
        yield command, folder, lambda *words: run(*words, env=env, timeout=PUSH_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def containerd(bench, registries, ca=None):
    """A daemon: how ctr is called, and its option for where the registries are to be asked: host
    names and the addresses of mirrors, or `address/v2/prefix` for a part of one."""
    need_root("containerd")
    folder = bench.fresh("containerd")
    # The path of a unix socket is limited to 107 bytes, which a deep TMPDIR would exceed.
    socket = os.path.join(folder, "s")
    config = os.path.join(folder, "config.toml")
    with open(config, "w") as file:
        file.write(f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
                   'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                   f'[grpc]\n  address = "{socket}"\n'
                   f'[ttrpc]\n  address = "{socket}.ttrpc"\n')
    scheme = "https" if ca else "http"
    for host, address in registries.items():
        hosts = os.path.join(folder, "hosts", host)
        os.makedirs(hosts)
        with open(os.path.join(hosts, "hosts.toml"), "w") as file:
            server = address.partition("/")[0]
            file.write(f'server = "{scheme}://{server}"\n[host."{scheme}://{address}"]\n'
                       '  capabilities = ["pull", "resolve", "push"]\n')
            if "/v2/" in address:
                file.write("  override_path = true\n")
            if ca:
                file.write(f'  ca = "{ca}"\n')
    with ended(bench.start("containerd", ["containerd", "--config", config])) as daemon:
        wait_until(daemon, "its socket", lambda: os.path.exists(socket))
        yield ["ctr", "-a", socket], ["--hosts-dir", os.path.join(folder, "hosts")]


@contextlib.contextmanager
def ended(process):
    """Ends the process afterwards."""
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def tmpfs(folder, size):
    """A file system in memory at `folder`."""
    need_root("mounting a tmpfs")
    os.makedirs(folder)
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield folder
    finally:
        run("umount", "--lazy", folder)
