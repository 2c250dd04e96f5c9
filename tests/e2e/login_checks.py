"""Logins of real clients: skopeo and podman, as the command line and as their `login` has them."""

import base64
import json
import os

from checks import check, same_files, same_manifest, want
from clients import Podman
from parts import Failed, run, skopeo

CLIENT_USER, CLIENT_PASSWORD = "carol", "correct horse: bättery staple"
CLIENT_TOKEN = base64.b64encode(f"{CLIENT_USER}:{CLIENT_PASSWORD}".encode()).decode()
RIGHT = f"{CLIENT_USER}:{CLIENT_PASSWORD}"


def login_proxy(bench, rig, **env):
    """A proxy that wants a login, of a file that htpasswd wrote."""
    file = bench.path("clients-htpasswd")
    with open(file, "wb") as target:
        target.write(run("htpasswd", "-Bbn", CLIENT_USER, CLIENT_PASSWORD))
    env = {**rig.env, "AUTH_FILE": file, **env}
    return bench.proxy(env, name="proxy-login")


def fails(what, function, *arguments):
    """Fails unless the client does, and says that it is a matter of the login."""
    try:
        function(*arguments)
    except Failed as error:
        said = str(error).lower()
        known = ["unauthorized", "invalid username/password", "login required"]
        want(any(words in said for words in known), what, "failed in another way:", said)
        return
    raise Failed(f"{what} came in")


@check("files")
def skopeo_logs_in(fixtures, rig):
    bench, layout = fixtures.bench, fixtures.layout
    proxy = login_proxy(bench, rig)
    source = f"oci:{layout.folder}:single"
    target = f"docker://{proxy.address}/team/login:1"
    plain = "--dest-tls-verify=false"
    fails("no login", skopeo, "copy", plain, source, target)
    before = rig.registry.process.text()
    fails("a wrong password", skopeo, "copy", plain, "--dest-creds", "carol:wrong", source, target)
    fails("an unknown user", skopeo, "copy", plain, "--dest-creds", "eve:x", source, target)
    want(rig.registry.process.text() == before, "a wrong login reached the registry")
    skopeo("copy", plain, "--dest-creds", RIGHT, source, target)
    same_manifest(rig, layout, "single", "team/login:1")
    # With `login`, and then without a word of it.
    authfile = bench.path("skopeo-auth.json")
    plain = ["--tls-verify=false", "--authfile", authfile]
    login = ["login", *plain, "--username", CLIENT_USER, proxy.address, "--password"]
    fails("`login` with a wrong password", skopeo, *login, "wrong")
    skopeo(*login, CLIENT_PASSWORD)
    with open(authfile) as file:
        want(proxy.address in json.load(file)["auths"], "nothing was kept")
    folder = bench.path("pulled-with-login")
    source = ["--src-tls-verify=false", "--authfile", authfile, target]
    skopeo("copy", *source, f"dir:{folder}")
    same_files(layout, "single", folder)
    proxy.process.stop()


@check("files")
def podman_logs_in(fixtures, rig):
    bench, layout = fixtures.bench, fixtures.layout
    proxy = login_proxy(bench, rig, CACHE_DIR=bench.fresh("cache-login"), CACHE_TAG_TTL="1h")
    rig.seed(layout, "single", "team/podman-login:1")
    podman, name = Podman(), "team/podman-login:1"

    def pull(*options):
        return podman.pull(bench, proxy.address, name, *options)

    fails("no login", pull)
    fails("a wrong password", pull, "--creds", "carol:wrong")
    got = pull("--creds", RIGHT)
    want(layout.tags["single"]["digest"] in got, got)
    # What is cached by now needs it too.
    fails("no login, of a hit", pull)
    authfile = bench.path("podman-auth.json")
    podman.login(bench, proxy.address, authfile, CLIENT_USER, CLIENT_PASSWORD)
    got = pull("--authfile", authfile)
    want(layout.tags["single"]["digest"] in got, got)
    want(os.path.getsize(authfile) > 0, "nothing was kept")
    proxy.process.stop()
