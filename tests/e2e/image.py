"""The container image that `make image` left in dist/, unpacked and run without a daemon.

A chroot of the image's own files, as the image's own user, stands for the container: nothing but
what the image holds is there, not even /proc. It needs root (or sudo without a password).
"""

import json
import os
import re
import subprocess

from parts import ROOT, Failed, run

ARCHIVE = os.path.join(ROOT, "dist", "aws-ecr-proxy-image.tar")


class Image:
    """The image, unpacked in the bench's folder."""

    def __init__(self, bench):
        if not os.path.exists(ARCHIVE):
            raise Failed(f"no image at {ARCHIVE}: run `make image`")
        self.bench = bench
        self.folder = bench.path("image")
        # docker-archive: manifest.json names the configuration and the layers.
        os.makedirs(self.folder)
        run("tar", "-xf", ARCHIVE, "-C", self.folder)
        with open(os.path.join(self.folder, "manifest.json")) as file:
            self.manifest = json.load(file)[0]
        self.root = bench.path("image-root")
        os.makedirs(self.root, mode=0o755)
        for layer in self.manifest["Layers"]:
            run("tar", "-xf", os.path.join(self.folder, layer), "-C", self.root)
        # The image's user must be able to reach its root.
        os.chmod(bench.folder, 0o755)
        self.as_root = [] if os.geteuid() == 0 else ["sudo", "-n", "-E"]

    def config(self):
        """What the image says about running it."""
        with open(os.path.join(self.folder, self.manifest["Config"])) as file:
            return json.load(file)["config"]

    def files(self):
        """Every file in it."""
        found = []
        for folder, _, names in os.walk(self.root):
            found += [os.path.relpath(os.path.join(folder, name), self.root) for name in names]
        return found

    def command(self, *arguments):
        """Its entry point, inside of it."""
        config = self.config()
        user = config["User"]
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
            raise Failed(f"the image's user is not a number other than root: {user!r}")
        chroot = [*self.as_root, "chroot", f"--userspec={user}", self.root]
        return [*chroot, *config["Entrypoint"], *arguments]

    def run(self, *arguments):
        """Runs it to its end; what it printed."""
        return run(*self.command(*arguments)).decode()

    def start(self, env):
        """Runs it as a container would, without arguments."""
        return self.bench.start("proxy-image", self.command(*(self.config().get("Cmd") or [])), env)

    def health(self, env):
        """The exit code of its own HEALTHCHECK."""
        arguments = self.config()["Healthcheck"]["Test"][2:]
        command = self.command(*arguments)
        env = {"PATH": os.environ["PATH"], **env}
        return subprocess.run(command, env=env, capture_output=True, timeout=30).returncode
