#!/usr/bin/env python3
"""What stands between a docker-registry and ECR: a reverse proxy that adds ECR's ways.

  front.py PORT --registry HOST:PORT --token BASIC [--quirks] [--tls CERT KEY]

Requests without a token are refused; any call of the ECR API here (`AWS_ENDPOINT_URL_ECR`) gives out
a new one, besides which the one given is good for ever. It adds what the specification has and a docker-registry
lacks: the referrers API, and 416 for a chunk out of order. With `--quirks` it answers as ECR does:

* `tags/list` and `_catalog` as text/plain, in pages of 100 (at most 1000) and in no order, with an
  absolute `Link` whose cursor is no name and must come back byte for byte
* no `Docker-Content-Digest` with a GET of a manifest, nor with a PUT, which has no `Location` either
* PATCH is answered 201, with a `Range` that sticks at the first chunk; uploads have no id, and an
  upload without a byte is refused
* a wrong token is 401 in plain text; blobs cannot be deleted

`GET /-/seen` tells how many requests of each kind came. After `POST /-/expire` the tokens that were
given out are refused as expired ones are: 403 in plain text, without a challenge.
"""

import argparse
import base64
import hashlib
import http.client
import json
import re
import ssl
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 1024 * 1024
PAGE, PAGE_MAX = 100, 1000
INDEX = "application/vnd.oci.image.index.v1+json"
EXPIRED = b"Your authorization token has expired. Reauthenticate and try again."
CHALLENGE = 'Basic realm="https://000000000000.dkr.ecr.eu-west-1.amazonaws.com/",' \
    'service="ecr.amazonaws.com"'
# Framing, which is this server's own, and what belongs to one connection.
HOP_BY_HOP = {"connection", "content-length", "date", "server", "transfer-encoding"}


class State:
    """What all connections share."""

    def __init__(self, options):
        self.options = options
        self.lock = threading.Lock()
        self.seen = {}
        # Tokens that were given out: true for good ones.
        self.tokens = {}
        # Bytes of each upload: of the first piece, and of all.
        self.uploads = {}
        # Listings that were begun: the cursor as it was sent, and the names that are left.
        self.cursors = {}
        # (repository, subject) to descriptors by digest.
        self.referrers = {}


class Answer(Exception):
    """A reply of this server's own."""

    def __init__(self, status, body, media_type="application/json", **headers):
        super().__init__(status)
        self.status, self.body = status, body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        version = {"Docker-Distribution-API-Version": "registry/2.0"}
        self.headers = {"Content-Type": media_type, **version, **named}


def refusal(status, code, message):
    """An error document."""
    return Answer(status, json.dumps({"errors": [{"code": code, "message": message}]}).encode())


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # Head and body are two writes: without this each reply waits 40 ms for an acknowledgement.
    disable_nagle_algorithm = True
    state = None

    def do_GET(self):
        try:
            self.handle_any()
        except Answer as answer:
            self.reply(answer.status, answer.headers, answer.body)
        except OSError:
            # Either side went away.
            self.close_connection = True

    do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_GET

    def handle_any(self):
        state, options = self.state, self.state.options
        path, _, query = self.path.partition("?")
        if path == "/-/seen":
            raise Answer(200, json.dumps(state.seen).encode())
        if path == "/-/expire":
            with state.lock:
                state.tokens = dict.fromkeys(state.tokens, False)
            raise Answer(200, b"")
        if "X-Amz-Target" in self.headers:
            self.give_token()
        kind, repository, name = kind_of(path)
        with state.lock:
            counted = f"{self.command} {kind}"
            state.seen[counted] = state.seen.get(counted, 0) + 1
        self.check_token()
        if kind == "referrers":
            self.list_referrers(repository, name, query)
        if kind in ("tags", "catalog") and options.quirks and self.command == "GET":
            self.list_names(kind, path, query)
        if kind == "blob" and self.command == "DELETE" and options.quirks:
            raise refusal(405, "UNSUPPORTED", "The operation is unsupported.")
        if kind == "upload":
            self.check_order(name)
        # Small, and read whole: it may refer to another.
        whole = self.read_all() if (kind, self.command) == ("manifest", "PUT") else None
        answer, sent = self.forward(whole, kind, name)
        headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in HOP_BY_HOP]
        status = answer.status
        if kind == "manifest":
            headers += self.track_referrers(repository, name, whole, answer)
        first = self.track_upload(name, sent) if kind == "upload" and status == 202 else 0
        if options.quirks:
            status, headers = self.with_quirks(kind, status, headers, first)
        self.pass_on(answer, status, headers)

    # === ECR's ways ===

    def give_token(self):
        """GetAuthorizationToken; whoever may have one is not judged here."""
        self.read_all()
        with self.state.lock:
            token = base64.b64encode(f"AWS:token-{len(self.state.tokens)}".encode()).decode()
            self.state.tokens[f"Basic {token}"] = True
        data = {"authorizationToken": token, "expiresAt": time.time() + 12 * 3600,
                "proxyEndpoint": self.base()}
        answer = json.dumps({"authorizationData": [data]}).encode()
        raise Answer(200, answer, "application/x-amz-json-1.1")

    def check_token(self):
        given = self.headers.get("Authorization")
        if given == self.state.options.token or self.state.tokens.get(given):
            return
        self.close_connection = True
        if given in self.state.tokens:
            raise Answer(403, EXPIRED, "text/plain; charset=utf-8")
        raise Answer(401, b"Not Authorized\n", "text/plain; charset=utf-8",
                     WWW_Authenticate=CHALLENGE)

    def with_quirks(self, kind, status, headers, first):
        dropped = set()
        if kind == "manifest" and self.command == "GET":
            dropped = {"docker-content-digest"}
        elif kind == "manifest" and self.command == "PUT":
            dropped = {"docker-content-digest", "location"}
        elif kind == "upload":
            dropped = {"docker-upload-uuid"}
        if kind == "upload" and self.command == "PATCH" and status == 202:
            status = 201
            headers = [(n, v) for n, v in headers if n.lower() != "range"]
            headers.append(("Range", f"0-{max(first, 1) - 1}"))
        return status, [(n, v) for n, v in headers if n.lower() not in dropped]

    def list_names(self, kind, path, query):
        parameters = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
        count = parameters.get("n") or str(PAGE)
        if not count.isdigit() or not 0 < int(count) <= PAGE_MAX:
            why = "Invalid parameter at 'maxResults' failed to satisfy constraint: 'must be less " \
                "than or equal to 1000'"
            raise refusal(405, "UNSUPPORTED", why)
        name, field = None, "repositories"
        if kind == "tags":
            name, field = path[len("/v2/"):-len("/tags/list")], "tags"
        cursor = parameters.get("last")
        if cursor is None:
            names = self.all_names(path, field)
        elif (path, cursor) in self.state.cursors:
            names = self.state.cursors[path, cursor]
        else:
            raise refusal(405, "UNSUPPORTED", "Invalid parameter at 'nextToken'")
        page, rest = names[:int(count)], names[int(count):]
        listing = {field: page} if name is None else {"name": name, field: page}
        links = {}
        if rest:
            cursor = base64.b64encode(hashlib.sha512(rest[0].encode()).digest()).decode()
            cursor = "+/" + cursor[:40] + "%2B" + cursor[40:80] + "=="
            self.state.cursors[path, cursor] = rest
            given = f"n={parameters['n']}&" if "n" in parameters else ""
            links = {"Link": f'<{self.base()}{path}?{given}last={cursor}>; rel="next"'}
        raise Answer(200, json.dumps(listing).encode(), "text/plain; charset=utf-8", **links)

    def all_names(self, path, field):
        """Every name there is, in no order."""
        found, target = [], f"{path}?n={PAGE_MAX}"
        while target:
            answer = self.ask("GET", target)
            body = answer.read()
            if answer.status != 200:
                raise Answer(answer.status, body)
            found += json.loads(body)[field] or []
            link = answer.getheader("Link") or ""
            match = re.match("<([^>]*)>", link)
            target = match and urllib.parse.urlsplit(match.group(1))._replace(
                scheme="", netloc="").geturl()
            answer.close()
        return sorted(found, key=lambda name: hashlib.md5(name.encode()).digest())

    # === what a docker-registry lacks ===

    def check_order(self, name):
        """Refuses a chunk that does not begin where the upload stands."""
        start = self.headers.get("Content-Range", "").partition("-")[0]
        so_far = self.state.uploads.get(name, (0, 0))[1]
        if start and int(start) != so_far:
            self.read_all()
            where = {"Location": self.base() + self.path, "Range": f"0-{max(so_far, 1) - 1}"}
            answer = refusal(416, "BLOB_UPLOAD_INVALID", "the chunk is out of order")
            answer.headers.update(where)
            raise answer

    def track_upload(self, name, sent):
        """Counts bytes that were taken; how many came first."""
        with self.state.lock:
            first, so_far = self.state.uploads.get(name, (sent, 0))
            if self.command == "PATCH":
                self.state.uploads[name] = (first, so_far + sent)
        return first

    def list_referrers(self, repository, subject, query):
        if not re.fullmatch("sha256:[0-9a-f]{64}", subject):
            raise refusal(400, "DIGEST_INVALID", "not a digest")
        wanted = urllib.parse.parse_qs(query).get("artifactType", [None])[0]
        known = self.state.referrers.get((repository, subject), {})
        fitting = [known[digest] for digest in sorted(known)
                   if wanted in (None, known[digest]["artifactType"])]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": fitting}
        filters = {"OCI_Filters_Applied": "artifactType"} if wanted else {}
        raise Answer(200, json.dumps(index).encode(), INDEX, **filters)

    def track_referrers(self, repository, name, body, answer):
        """Notes what a manifest refers to; the fields that are owed for it."""
        if self.command == "DELETE" and answer.status == 202:
            for (owner, _), known in self.state.referrers.items():
                if owner == repository:
                    known.pop(name, None)
        if self.command != "PUT" or answer.status != 201:
            return []
        manifest = json.loads(body)
        subject = (manifest.get("subject") or {}).get("digest")
        if not subject:
            return []
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        kind = manifest.get("artifactType") or manifest.get("config", {}).get("mediaType")
        described = {
            "mediaType": manifest.get("mediaType") or self.headers.get("Content-Type"),
            "digest": digest, "size": len(body), "artifactType": kind,
        }
        if manifest.get("annotations"):
            described["annotations"] = manifest["annotations"]
        with self.state.lock:
            self.state.referrers.setdefault((repository, subject), {})[digest] = described
        return [("OCI-Subject", subject)]

    # === the registry ===

    def base(self):
        """How clients reach this server, by their own word for it."""
        scheme = "https" if self.state.options.tls else "http"
        return f"{scheme}://{self.headers.get('Host')}"

    def begin(self, method, target, **framing):
        """Sends a head to the registry; the connection, for the body."""
        host, _, port = self.state.options.registry.partition(":")
        upstream = http.client.HTTPConnection(host, int(port))
        upstream.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP | {"expect"}:
                upstream.putheader(name, value)
        if self.state.options.tls:
            upstream.putheader("X-Forwarded-Proto", "https")
        for name, value in framing.items():
            upstream.putheader(name.replace("_", "-"), value)
        upstream.endheaders()
        return upstream

    def ask(self, method, target):
        return self.begin(method, target).getresponse()

    def forward(self, whole, kind, name):
        """Passes the request on as it comes; the answer, and how many bytes went there."""
        length = self.headers.get("Content-Length")
        if whole is not None:
            upstream = self.begin(self.command, self.path, Content_Length=str(len(whole)))
            upstream.send(whole)
            return upstream.getresponse(), len(whole)
        if kind == "upload" and self.command == "PUT" and not self.is_chunked():
            self.refuse_empty(name, int(length or 0))
        if self.is_chunked():
            upstream = self.begin(self.command, self.path, Transfer_Encoding="chunked")
        elif length:
            upstream = self.begin(self.command, self.path, Content_Length=length)
        else:
            return self.ask(self.command, self.path), 0
        sent = 0
        for piece in self.pieces():
            sent += len(piece)
            upstream.send(b"%x\r\n%s\r\n" % (len(piece), piece) if self.is_chunked() else piece)
        if self.is_chunked():
            upstream.send(b"0\r\n\r\n")
        return upstream.getresponse(), sent

    def refuse_empty(self, name, length):
        so_far = self.state.uploads.get(name, (0, 0))[1]
        if self.state.options.quirks and length + so_far == 0:
            why = "The upload cannot be completed because it does not have any parts"
            raise refusal(400, "BLOB_UPLOAD_INVALID", why)

    def is_chunked(self):
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def read_all(self):
        return b"".join(self.pieces())

    def pieces(self):
        """The body as it comes."""
        if not self.is_chunked():
            yield from self.exactly(int(self.headers.get("Content-Length") or 0))
            return
        while length := int(self.rfile.readline().partition(b";")[0], 16):
            yield from self.exactly(length)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def exactly(self, left):
        while left > 0:
            piece = self.rfile.read1(min(PIECE, left))
            if not piece:
                raise ConnectionError("the body broke off")
            left -= len(piece)
            yield piece

    # === the client ===

    def pass_on(self, answer, status, headers):
        length = answer.getheader("Content-Length")
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        data = None
        if length is None and self.command != "HEAD":
            data = answer.read()
            length = len(data)
        if status != 204 and length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            sent = len(data or b"")
            while data is None and (piece := answer.read(PIECE)):
                self.wfile.write(piece)
                sent += len(piece)
            self.wfile.write(data or b"")
            # A docker-registry breaks off the error documents of some ranges.
            self.close_connection |= length is not None and sent < int(length)
        answer.close()

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def kind_of(path):
    """What a path is about: the endpoint, the repository, and what stands last in it."""
    for kind, pattern in [
        ("tags", r"/v2/(.+)/tags/(list)"),
        ("upload", r"/v2/(.+)/blobs/uploads/([^/]*)"),
        ("blob", r"/v2/(.+)/blobs/([^/]+)"),
        ("manifest", r"/v2/(.+)/manifests/([^/]+)"),
        ("referrers", r"/v2/(.+)/referrers/([^/]+)"),
    ]:
        match = re.fullmatch(pattern, path)
        if match:
            return kind, match.group(1), match.group(2)
    return ("catalog" if path == "/v2/_catalog" else "other"), None, None


def main():
    """Serves until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--quirks", action="store_true")
    parser.add_argument("--tls", nargs=2)
    options = parser.parse_args()
    Handler.state = State(options)
    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*options.tls)
        # The handshake belongs to the connection's own thread, not to the accepting one.
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.serve_forever()


if __name__ == "__main__":
    main()
