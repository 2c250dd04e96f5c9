"""Whose blobs a client may read, in front of a real registry, which decodes the names of parameters."""

import hashlib

import cached
from checks import check, want
from parts import wait_until

SECRET = b"the secret layer of team-b"
OWN = b"what team-a pushes"


@check("bench")
def a_blob_of_another_repository_stays_closed(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    secret = upstream.seed_blob("team-b/app", SECRET)
    own = "sha256:" + hashlib.sha256(OWN).hexdigest()
    proxy = upstream.proxy(bench.fresh("cache"))
    blob = f"/v2/team-b/app/blobs/{secret}"
    wait_until(proxy.process, "the secret is in the cache",
               lambda: proxy.get(blob).getheader("X-Cache") == "HIT")
    uploads = "/v2/team-a/app/blobs/uploads/"

    def closed(what):
        for method in ["HEAD", "GET"]:
            status = proxy.request(method, f"/v2/team-a/app/blobs/{secret}").status
            want(status == 404, what, method, "answered", status)

    for query in [f"%64igest={own}&digest={secret}", f"digest={secret}&%64igest={own}",
                  f"digest={own}&digest={secret}", f"digest={own};digest={secret}"]:
        begun = proxy.request("POST", uploads)
        target = begun.getheader("Location").removeprefix(proxy.url)
        joint = "&" if "?" in target else "?"
        reply = proxy.request("PUT", f"{target}{joint}{query}", OWN)
        want(reply.status == 400, query, "answered", reply.status, reply.body)
        closed(query)
    # The registry mounts nothing from a repository that does not have the blob.
    reply = proxy.request("POST", f"{uploads}?mount={secret}&from=team-c/app")
    want(reply.status == 202, "a mount answered", reply.status)
    closed("a mount")
    # Whoever has the bytes may have them back.
    begun = proxy.request("POST", uploads)
    target = begun.getheader("Location").removeprefix(proxy.url)
    joint = "&" if "?" in target else "?"
    reply = proxy.request("PUT", f"{target}{joint}digest={own}", OWN)
    want(reply.status == 201, "a push answered", reply.status, reply.body)
    reply = proxy.get(f"/v2/team-a/app/blobs/{own}")
    want((reply.status, reply.body) == (200, OWN), "the push is not there:", reply.status)
