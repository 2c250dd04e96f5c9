"""Registries that misbehave, as real clients see them: they learn nothing of our token, and are
answered after a failover.
"""

import http.server
import json
import socket
import threading
import urllib.parse

from checks import check, want
from parts import PASSWORD, Failed, basic, skopeo

MANIFEST = "application/vnd.oci.image.index.v1+json"
# As many as a node's containerd has on its way at a time.
CONNECTIONS = 12


class Scripted(http.server.ThreadingHTTPServer):
    """A registry in this process; `answer(handler)` writes each reply."""

    daemon_threads = True

    def __init__(self, answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def send(handler, status, body, fields=()):
    """A whole reply."""
    handler.send_response(status)
    for name, value in fields:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def forms():
    """The token as it is sent, decoded, and its password alone."""
    token = basic().removeprefix("Basic ")
    return [token, f"AWS:{PASSWORD}", PASSWORD, urllib.parse.quote(token, safe="")]


def echo(handler):
    """Sends the token back: `/v2/WHERE/FORM/…`."""
    where, form = handler.path.split("/")[2:4]
    secret = forms()[int(form.removeprefix("form"))]
    index = {"schemaVersion": 2, "mediaType": MANIFEST, "manifests": [],
             "annotations": {"echo": secret}}
    if where == "ok":
        fields = [("Content-Type", MANIFEST), ("X-Echo", secret)]
        send(handler, 200, json.dumps(index).encode(), fields)
    elif where == "text":
        send(handler, 403, f"denied: {secret}".encode(), [("Content-Type", "text/plain")])
    else:
        send(handler, 500, b"x" * 100_000 + secret.encode(), [("X-Echo", secret)])


@check("aws")
def a_registry_that_sends_our_token_back_tells_no_client(fixtures, aws):
    with Scripted(echo) as registry:
        proxy = fixtures.bench.proxy({**aws.env(), "ECR": registry.url}, name="proxy-echo")
        for where in ["ok", "text", "long"]:
            for form in range(len(forms())):
                image = f"docker://{proxy.address}/{where}/form{form}:1"
                try:
                    said = skopeo("inspect", "--raw", "--tls-verify=false", image).decode()
                except Failed as failed:
                    said = str(failed)
                for secret in forms():
                    want(secret not in said, where, form, "told", said)
        log = proxy.process.text()
        for secret in forms():
            want(secret not in log, "in the log", secret)
        proxy.process.stop()


@check("aws")
def a_failover_of_the_registry_costs_no_pull(fixtures, aws):
    warm, over = threading.Barrier(CONNECTIONS), threading.Event()

    def answer(handler):
        if not over.is_set():
            warm.wait(60)
            handler.is_old = True
        elif getattr(handler, "is_old", False):
            # The new balancer does not know this connection.
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        send(handler, 200, b'{"name":"x","tags":["1"]}', [("Content-Type", "application/json")])

    with Scripted(answer) as registry:
        proxy = fixtures.bench.proxy({**aws.env(), "ECR": registry.url}, name="proxy-failover")

        def ask(number, into):
            into.append(proxy.get(f"/v2/team/app{number}/tags/list").status)

        before, after = [], []
        threads = [threading.Thread(target=ask, args=(number, before))
                   for number in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        over.set()
        for number in range(CONNECTIONS):
            ask(number, after)
        want(before == after == [200] * CONNECTIONS, before, after)
        proxy.process.stop()
