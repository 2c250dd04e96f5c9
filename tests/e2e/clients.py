"""Real clients, each with a store of its own for every pull, so that nothing but the proxy caches.

A client's `pull` takes the proxy's address and a name such as `team/app:1` or `team/app@sha256:…`,
and gives back the digests of what arrived; every client has verified them by itself.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import tempfile

from parts import ECR_HOST, Failed, run, skopeo, wait_until

# What clients ask an index for, in its own words.
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
# A pull that takes longer hangs.
PULL_SECONDS = 120


def need_root(what):
    """podman and containerd unpack layers as root, and file systems are mounted by root."""
    if os.geteuid() != 0:
        raise Failed(f"{what} needs root: run the checks as root (sudo -E make e2e)")


class Skopeo:
    """Pulls into a folder."""

    name = "skopeo"

    def pull(self, bench, address, name):
        folder = bench.fresh("skopeo")
        skopeo("copy", "--src-tls-verify=false", f"docker://{address}/{name}", f"dir:{folder}")
        found = set()
        for entry in os.listdir(folder):
            if entry != "version":
                with open(os.path.join(folder, entry), "rb") as file:
                    found.add("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
        return found


class Podman:
    """Pulls into a storage of its own and unpacks."""

    name = "podman"

    def login(self, bench, address, authfile, user, password):
        env = {"PATH": os.environ["PATH"], "HOME": bench.fresh("podman")}
        run("podman", "login", "--tls-verify=false", "--authfile", authfile, "--username", user,
            "--password-stdin", address, input=password.encode(), env=env, timeout=PULL_SECONDS)

    def pull(self, bench, address, name, *options):
        need_root("podman")
        folder = bench.fresh("podman")
        policy = os.path.join(folder, "policy.json")
        with open(policy, "w") as file:
            json.dump({"default": [{"type": "insecureAcceptAnything"}]}, file)
        env = {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder}
        image = f"{address}/{name}"
        # podman takes no run root of more than 50 characters.
        with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as runroot:
            podman = ["podman", "--root", os.path.join(folder, "root"), "--storage-driver", "vfs",
                      "--runroot", runroot, "--tmpdir", os.path.join(folder, "tmp")]
            run(*podman, "pull", "--quiet", "--tls-verify=false", "--signature-policy", policy,
                *options, image, env=env, timeout=PULL_SECONDS)
            told = run(*podman, "image", "inspect", image, env=env, timeout=PULL_SECONDS)
        inspected = json.loads(told)[0]
        digests = re.findall(r"sha256:[0-9a-f]{64}", " ".join(inspected["RepoDigests"]))
        return {*digests, inspected["Digest"], "sha256:" + inspected["Id"]}


class Containerd:
    """Pulls by ECR's own name, which hosts.toml leads to the proxy, and unpacks."""

    name = "containerd"

    def pull(self, bench, address, name):
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
        hosts = os.path.join(folder, "hosts", ECR_HOST)
        os.makedirs(hosts)
        with open(os.path.join(hosts, "hosts.toml"), "w") as file:
            file.write(f'server = "http://{address}"\n[host."http://{address}"]\n'
                       '  capabilities = ["pull", "resolve"]\n')
        with ended(bench.start("containerd", ["containerd", "--config", config])) as daemon:
            wait_until(daemon, "its socket", lambda: os.path.exists(socket))
            ctr = ["ctr", "-a", socket]
            run(*ctr, "images", "pull", "--snapshotter", "native", "--hosts-dir",
                os.path.dirname(hosts), f"{ECR_HOST}/{name}", timeout=PULL_SECONDS)
            return set(run(*ctr, "content", "ls", "-q").decode().split())


CLIENTS = [Skopeo(), Podman(), Containerd()]


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
