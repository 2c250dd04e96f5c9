#!/usr/bin/env python3
"""What ECR's registry does before it answers: asks IAM whether the identity may.

  rights.py PORT --registry HOST:PORT --aws URL

moto verifies signatures and policies, and has no registry; a docker-registry has no policies. This
stands before the registry, calls the API action that belongs to a request with the identity of the
environment, and refuses in ECR's form with AWS's own words. It runs under the Python that has boto3.
"""

import argparse
import http.client
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
from botocore.exceptions import ClientError

IMAGE = [{"imageTag": "any"}]
LAYER = "sha256:" + "0" * 64
# The action of a pull, by the kind of its path.
ACTIONS = {
    "manifests": lambda ecr, name: ecr.batch_get_image(repositoryName=name, imageIds=IMAGE),
    "blobs": lambda ecr, name: ecr.get_download_url_for_layer(repositoryName=name, layerDigest=LAYER),
}
HOP_BY_HOP = {"connection", "content-length", "date", "server", "transfer-encoding"}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    registry = ecr = None

    def do_GET(self):
        found = re.fullmatch("/v2/(.+)/(manifests|blobs)/[^/]+", self.path)
        refused = self.refusal(*found.groups()) if found else None
        if refused:
            document = {"errors": [{"code": "DENIED", "message": refused}]}
            self.reply(403, {"Content-Type": "application/json"}, json.dumps(document).encode())
            return
        connection = http.client.HTTPConnection(self.registry, timeout=30)
        connection.request("GET", self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        fields = {n: v for n, v in answer.getheaders() if n.lower() not in HOP_BY_HOP}
        self.reply(answer.status, fields, answer.read())

    def refusal(self, repository, kind):
        """Why the identity may not; none when it may. Whether moto knows the image is all one."""
        try:
            ACTIONS[kind](self.ecr, repository)
        except ClientError as error:
            # moto denies in XML where AWS does in JSON; the words are AWS's.
            told = re.search("User: .* is not authorized to perform: [a-zA-Z:]+", str(error))
            return told and told.group()

    def reply(self, status, fields, body):
        self.send_response(status)
        for name, value in {**fields, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--aws", required=True)
    options = parser.parse_args()
    Handler.registry = options.registry
    Handler.ecr = boto3.client("ecr", endpoint_url=options.aws)
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


main()
