"""Logins of real clients: skopeo and podman, as the command line and as their `login` has them."""

import base64
import contextlib
import functools
import http.server
import json
import os
import threading

from browser import Browser
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


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def page_of_another_origin(folder):
    """A web server on a port of its own; its origin."""
    with open(os.path.join(folder, "index.html"), "w") as file:
        file.write("<!doctype html><title>a user interface</title>")
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FETCH = """(async (path, login, method) => {
    const headers = {Accept: "application/vnd.oci.image.manifest.v1+json, application/json"};
    if (login) headers.Authorization = "Basic " + login;
    const credentials = %r;
    try {
        const got = await fetch(%r + path, {method, headers, credentials});
        const text = await got.text();
        return [got.status, text, got.headers.get("Link"), got.headers.get("Docker-Content-Digest")];
    } catch (error) { return String(error); }
})"""


@check("files")
def a_page_of_another_origin_uses_the_registry(fixtures, rig):
    bench, layout, name = fixtures.bench, fixtures.layout, "team/browsed"
    for image in (f"{name}:1", f"{name}:2", "team/browsed-too:1"):
        rig.seed(layout, "single", image)
    with page_of_another_origin(bench.fresh("origin")) as origin, Browser() as browser:
        proxy = login_proxy(bench, rig, ACCESS_CONTROL_ALLOW_ORIGIN=f"http://a.example,{origin}")
        browser.open(origin + "/")
        browser.wait(f"location.origin === {origin!r}")

        def fetch(path, login=CLIENT_TOKEN, method="GET", credentials="omit", at=proxy):
            call = FETCH % (credentials, at.url)
            return browser.run(f"{call}({path!r}, {login!r}, {method!r})")

        # The header with the login makes the browser ask beforehand.
        for credentials in ("omit", "include"):
            status, text, _, _ = fetch(f"/v2/{name}/tags/list", credentials=credentials)
            want(status == 200 and sorted(json.loads(text)["tags"]) == ["1", "2"], status, text)
        link = fetch("/v2/_catalog?n=1")[2]
        want(link and "/v2/_catalog?" in link, "the page cannot read Link:", link)
        digest = fetch(f"/v2/{name}/manifests/1", method="HEAD")[3]
        want(digest == layout.tags["single"]["digest"], "the page cannot read the digest:", digest)
        want(fetch(f"/v2/{name}/tags/list", "")[0] == 401, "a refusal cannot be read")
        want(fetch(f"/v2/{name}/manifests/none")[0] == 404, "an error cannot be read")
        got = fetch(f"/v2/{name}/manifests/none", method="DELETE")
        want(isinstance(got, list), "DELETE never came:", got)
        # What is not named is not read.
        other = login_proxy(bench, rig, ACCESS_CONTROL_ALLOW_ORIGIN="http://a.example")
        got = fetch(f"/v2/{name}/tags/list", at=other)
        want(isinstance(got, str) and "TypeError" in got, "another page may read:", got)
        every = login_proxy(bench, rig, ACCESS_CONTROL_ALLOW_ORIGIN="*")
        want(fetch(f"/v2/{name}/tags/list", at=every)[0] == 200, "with * no page may read")
        got = fetch(f"/v2/{name}/tags/list", credentials="include", at=every)
        want(isinstance(got, str), "with * a page may send what the browser remembers:", got)
        for each in (proxy, other, every):
            each.process.stop()
