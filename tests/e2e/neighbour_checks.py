"""Neighbours that are hostile or have bad luck, as skopeo and curl see them: redirects and names
that lead back to this host, settings with a typing error, answers that were cut, and a peer that
falls silent.
"""

import ctypes
import hashlib
import json
import os
import socket
import struct
import subprocess
import threading

from checks import check, want
from hostile_checks import Scripted, send
from parts import Failed, proxy_command, skopeo

CONFIG = b"{}"
LAYER = b"layer" * 10_000
# SO_ATTACH_FILTER, which Python has no name for (asm-generic/socket.h).
ATTACH_FILTER = 26
# Connections that fall silent at a time.
CONNECTIONS = 4
# What containerd gives up after.
CLIENT_SECONDS = 30


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def manifest():
    """An image of one layer."""
    config = "application/vnd.oci.image.config.v1+json"
    layer = "application/vnd.oci.image.layer.v1.tar"
    return json.dumps({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": config, "digest": digest(CONFIG), "size": len(CONFIG)},
        "layers": [{"mediaType": layer, "digest": digest(LAYER), "size": len(LAYER)}],
    }).encode()


def image_registry(blob):
    """A registry with one image, whose blobs `blob(handler, data)` answers."""
    def answer(handler):
        kind, name = handler.path.split("/")[-2:]
        if kind == "manifests":
            fields = [("Content-Type", json.loads(manifest())["mediaType"])]
            send(handler, 200, manifest(), fields)
        elif kind == "blobs":
            blob(handler, {digest(CONFIG): CONFIG, digest(LAYER): LAYER}[name])
        else:
            send(handler, 200, b"{}")

    return Scripted(answer)


def upstream(registry):
    """The settings of a proxy in front of it."""
    return {"ECR": registry.url, "UPSTREAM_AUTH": "none"}


def pull(proxy, folder):
    """What skopeo says when it cannot pull the image; None when it can."""
    image = f"docker://{proxy.address}/team/app:1"
    try:
        skopeo("copy", "--src-tls-verify=false", "--retry-times", "0", image, f"dir:{folder}")
    except Failed as failed:
        return str(failed)
    return None


def curl(url, *options):
    """curl's exit code, the status, and the body."""
    command = ["curl", "--silent", "--max-time", "60", "--write-out", "\n%{http_code}"]
    done = subprocess.run([*command, *options, url], capture_output=True)
    body, _, status = done.stdout.rpartition(b"\n")
    return done.returncode, int(status), body


class Names:
    """A name server that gives `address` for every name."""

    def __init__(self, address):
        self.answer, self.count = socket.inet_aton(address), 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.socket.getsockname()[1]

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.socket.close()

    def _serve(self):
        while True:
            try:
                query, sender = self.socket.recvfrom(4096)
            except OSError:
                return
            self.count += 1
            end = query.index(b"\0", 12) + 5
            question, kind = query[12:end], query[end - 4:end - 2]
            is_a = kind == b"\0\1"
            head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, is_a, 0, 0)
            record = b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 60, 4) + self.answer
            self.socket.sendto(head + question + (record if is_a else b""), sender)


# === redirects and names that lead home ===


class Inside(Scripted):
    """A service of this host that nobody may lead the proxy to."""

    def __init__(self):
        super().__init__(lambda handler: send(handler, 200, LAYER))
        self.connections = 0

    def verify_request(self, *_):
        self.connections += 1
        return True


@check("bench")
def a_redirect_that_leads_home_is_not_followed(fixtures, bench):
    never, unlisted = "never connected to", "BLOB_HOSTS"
    with Inside() as inside:
        port = inside.server_address[1]
        for location, address, why in [
            (f"http://a.blobs.test:{port}/x", "127.0.0.1", never),
            (f"http://a.blobs.test:{port}/x", "0.0.0.0", never),
            (f"http://a.blobs.test:{port}/x", "169.254.169.254", never),
            ("https://bucket.s3.eu-west-1.amazonaws.com/x", "127.0.0.1", never),
            (f"http://localhost:{port}/x", "127.0.0.1", unlisted),
            (f"http://[::1]:{port}/x", "127.0.0.1", unlisted),
            ("http://169.254.169.254/latest/meta-data/", "169.254.169.254", unlisted),
            ("https://s3.x.execute-api.eu-west-1.amazonaws.com/x", "127.0.0.1", unlisted),
            ("https://bucket.s3.eu-west-1.amazonaws.com.evil.test/x", "127.0.0.1", unlisted),
            (f"https://bucket.s3.eu-west-1.amazonaws.com:{port}/x", "127.0.0.1", unlisted),
        ]:
            def redirect(handler, _data, location=location):
                send(handler, 307, b"", [("Location", location)])

            with Names(address) as names, image_registry(redirect) as registry:
                env = {"RESOLVER": names.address, "BLOB_HOSTS": ".blobs.test"}
                proxy = bench.proxy({**upstream(registry), **env}, name="proxy-home")
                want(pull(proxy, bench.fresh("home")), location, "was pulled")
                _, status, body = curl(f"{proxy.url}/v2/team/app/blobs/{digest(LAYER)}")
                want(status in (502, 504) and why in body.decode(), location, status, body)
                proxy.process.stop()
        want(inside.connections == 0, "this host was connected to")


@check("bench")
def a_registrys_name_that_leads_to_metadata_is_not_connected_to(fixtures, bench):
    for address in ["169.254.169.254", "169.254.170.2", "0.0.0.0"]:
        with Names(address) as names:
            env = {"ECR": "http://registry.test", "UPSTREAM_AUTH": "none",
                   "RESOLVER": names.address}
            proxy = bench.proxy(env, name="proxy-metadata")
            reply = proxy.get("/v2/team/app/tags/list")
            want(reply.status == 504, address, reply.status, reply.body)
            want(b"never connected to" in reply.body and names.count, address, reply.body)
            proxy.process.stop()


# === settings with a typing error ===


@check("bench")
def a_typing_error_in_a_security_setting_keeps_the_door_shut(fixtures, bench):
    for name, value in [
        ("READONLY", "true"), ("READ_ONLLY", "true"), ("AUTHFILE", "/etc/htpasswd"),
        ("AUTH_FIEL", "/etc/htpasswd"), ("ALLOW_REPOS", "team/*"),
        ("ALLOW_REPOSITORYS", "team/*"), ("SSL_CLIENTCA", "/ca.pem"),
    ]:
        env = {"PATH": os.environ["PATH"], "LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": "0",
               "ECR": "http://127.0.0.1:1", "CACHE_DIR": "off", name: value}
        for command in ([], ["check"]):
            done = subprocess.run([*proxy_command(), *command], env=env, capture_output=True,
                                  timeout=60)
            said = (done.stdout + done.stderr).decode()
            want(done.returncode == 64, name, command, "ended with", done.returncode, said)
            want(f"{name}: no setting; did you mean " in said, name, command, said)


# === answers that are not what was asked for ===


def chunked(handler, data):
    """A reply of unknown length."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))


def until_closed(handler, data):
    """A reply that ends with its connection."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)
    handler.close_connection = True


@check("bench")
def wrong_bytes_of_unknown_length_end_in_a_reset(fixtures, bench):
    for reply in [chunked, until_closed]:
        for cache in ["off", bench.fresh("unknown-length")]:
            wrong = {LAYER: LAYER[:-1] + b"X"}
            cut = {LAYER: LAYER[:-5]}
            for change, is_whole in [({}, True), (wrong, False), (cut, False)]:
                def blob(handler, data, reply=reply, change=change):
                    reply(handler, change.get(data, data))

                with image_registry(blob) as registry:
                    env = {**upstream(registry), "CACHE_DIR": cache}
                    proxy = bench.proxy(env, name="proxy-unknown-length")
                    code, status, body = curl(f"{proxy.url}/v2/team/app/blobs/{digest(LAYER)}")
                    got = (code, status, body == LAYER)
                    want(got == (0, 200, True) if is_whole else code != 0 or status == 502,
                         reply.__name__, cache, change.keys(), got)
                    failed = pull(proxy, bench.fresh("unknown"))
                    want((failed is None) == is_whole, reply.__name__, cache, failed)
                    proxy.process.stop()
                # What was verified is in the cache; the next round begins with an empty one.
                if cache != "off":
                    cache = bench.fresh("unknown-length")


@check("bench")
def another_range_than_asked_for_is_no_answer(fixtures, bench):
    def blob(handler, data):
        total = len(data)
        part, named = {
            "right": (data[5:10], f"bytes 5-9/{total}"),
            "other": (data[0:5], f"bytes 0-4/{total}"),
            "longer": (data[5:], f"bytes 5-{total - 1}/{total}"),
            "unnamed": (data[5:10], None),
        }[handler.path.split("/")[2]]
        send(handler, 206, part, [("Content-Range", named)] if named else [])

    with image_registry(blob) as registry:
        proxy = bench.proxy(upstream(registry), name="proxy-range")
        for case, expected in [("right", 206), ("other", 502), ("longer", 502), ("unnamed", 502)]:
            url = f"{proxy.url}/v2/{case}/blobs/{digest(LAYER)}"
            code, status, body = curl(url, "--range", "5-9")
            want((code, status) == (0, expected), case, code, status, body)
            want(status != 206 or body == LAYER[5:10], case, body)
        proxy.process.stop()


@check("bench")
def a_list_that_was_cut_is_no_list(fixtures, bench):
    names = ",".join(f'"tag-{number:06}"' for number in range(20_000))
    for names, is_long in [('"1","2"', False), (names, True)]:
        whole = f'{{"name":"team/app","tags":[{names}]}}'.encode()
        for body in [whole, whole[:-1], whole[:len(whole) - 4]]:
            with Scripted(lambda handler, body=body: until_closed(handler, body)) as registry:
                proxy = bench.proxy(upstream(registry), name="proxy-list")
                code, status, got = curl(f"{proxy.url}/v2/team/app/tags/list")
                if body == whole:
                    want((code, status, got) == (0, 200, whole), code, status, len(got))
                else:
                    want(code != 0 if is_long else status == 502, is_long, code, status)
                try:
                    skopeo("list-tags", "--tls-verify=false", "--retry-times", "0",
                           f"docker://{proxy.address}/team/app")
                    want(body == whole, "skopeo took a cut list for whole")
                except Failed:
                    want(body != whole, "skopeo refused a whole list")
                proxy.process.stop()


# === a peer that falls silent ===


def silence(connection):
    """From now on the kernel drops what comes for this socket before it looks at it: nothing is
    acknowledged, as behind a balancer that has failed over without a word."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # ret 0
    fprog = struct.pack("HL", 1, ctypes.addressof(program))
    connection.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, fprog)


@check("bench")
def a_failover_without_a_word_costs_no_pull(fixtures, bench):
    kept, warm = [], threading.Barrier(CONNECTIONS)

    def answer(handler):
        if handler.connection not in kept and len(kept) < CONNECTIONS:
            kept.append(handler.connection)
            warm.wait(60)
        send(handler, 200, b'{"name":"x","tags":["1"]}', [("Content-Type", "application/json")])

    with Scripted(answer) as registry:
        proxy = bench.proxy(upstream(registry), name="proxy-silent")

        def ask_all(count):
            seen = []

            def ask(number):
                target = f"/v2/team/app{number}/tags/list"
                seen.append(proxy.request("GET", target, timeout=CLIENT_SECONDS).status)

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return seen

        want(ask_all(CONNECTIONS) == [200] * CONNECTIONS, "before the failover")
        for connection in kept:
            silence(connection)
        want(ask_all(CONNECTIONS) == [200] * CONNECTIONS, "after the failover")
        want(ask_all(1) == [200], "at last")
        proxy.process.stop()
