#!/usr/bin/env python3
"""The metadata endpoints of AWS's own machines, as strict as they are: version 2 of the instance
metadata service, and the credentials of a container.

  metadata.py PORT FILE

FILE is JSON: `credentials` (`AccessKeyId`, `SecretAccessKey`, `Token`, `Expiration`), `role`,
`region`, and `authorization`, which the container's endpoint asks for. It is read at each request,
so that what is handed out can be changed. `GET /-/seen` lists the requests: method, path and status.
"""

import json
import secrets
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROLES = "/latest/meta-data/iam/security-credentials/"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
LOCK = threading.Lock()
SESSIONS, SEEN = set(), []


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    file = None

    def do_GET(self):
        if self.path == "/-/seen":
            return self.reply(200, json.dumps(SEEN))
        with open(self.file) as file:
            known = json.load(file)
        if self.path.startswith("/latest/"):
            return self.instance(known)
        if self.path != "/v1/credentials":
            return self.reply(404, "")
        if self.headers.get("Authorization") != known["authorization"]:
            refusal = {"code": "AccessDeniedException", "message": "the token is not trusted"}
            return self.reply(403, json.dumps(refusal))
        return self.reply(200, json.dumps(known["credentials"]))

    def do_PUT(self):
        # What came through a proxy gets no session (EC2 user guide, "How IMDSv2 works").
        if "X-Forwarded-For" in self.headers:
            return self.reply(403, "")
        ttl = self.headers.get(TTL, "")
        if self.path != "/latest/api/token" or not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            return self.reply(400, "")
        session = secrets.token_urlsafe(40)
        with LOCK:
            SESSIONS.add(session)
        return self.reply(200, session, {TTL: ttl})

    def instance(self, known):
        with LOCK:
            knows_session = self.headers.get("X-aws-ec2-metadata-token") in SESSIONS
        if not knows_session:
            return self.reply(401, "")  # version 1 is off
        if self.path == ROLES:
            return self.reply(200, known["role"])
        if self.path == ROLES + known["role"]:
            document = {"Code": "Success", "Type": "AWS-HMAC", **known["credentials"]}
            return self.reply(200, json.dumps(document))
        if self.path == "/latest/meta-data/placement/region":
            return self.reply(200, known["region"])
        return self.reply(404, "")

    def reply(self, status, text, fields=None):
        if not self.path.startswith("/-/"):
            with LOCK:
                SEEN.append([self.command, self.path, status])
        body = text.encode()
        self.send_response(status)
        for name, value in (fields or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    """Serves until it is ended."""
    Handler.file = sys.argv[2]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
