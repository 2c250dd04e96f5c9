"""What the suites of other registries and clients look at: addresses behind a TLS terminator that
says nothing of TLS, ranges that end before they begin, and wrong passwords.
"""

import time

import cached
from checks import check, redirecting_files, want
from clients import PUSHERS, cert_dir
from listing_checks import nginx
from login_checks import CLIENT_USER, fails, login_proxy
from parts import skopeo

# Terminators that pass the host on and say nothing of TLS.
SILENT = {"nothing of TLS": """
    client_max_body_size 0; proxy_request_buffering off; proxy_set_header Host $http_host;"""}
# Tries of a script with an old password, and the most that all of them may take.
WRONG_TRIES = 8
WRONG_SECONDS_MAX = 60


@check("bench")
def relative_addresses_lead_back_through_a_silent_tls_terminator(fixtures, bench):
    layout, folder = fixtures.layout, bench.fresh("storage")
    layers = bench.layer_host(["--files", folder])
    storage = redirecting_files(folder, layers)
    registry = bench.registry(storage, "registry-relative", relative=True)
    proxy = bench.proxy({"ECR": registry.url, "BLOB_HOSTS": layers.address, **fixtures.aws.env()})
    process, [way] = nginx(bench, fixtures.authority, proxy, SILENT)
    begun = way.request("POST", "/v2/team/app/blobs/uploads/")
    location = begun.getheader("Location")
    want(begun.status == 202 and location.startswith("/v2/team/app/blobs/uploads/"),
         begun.status, "Location:", location)
    certificates = cert_dir(bench, way.tls.ca)
    for tag in ["a", "b", "c"]:
        skopeo("copy", "--dest-cert-dir", certificates, f"oci:{layout.folder}:single",
               f"docker://{way.address}/team/app:{tag}")
    target = bench.path("pulled-silent")
    skopeo("copy", "--src-cert-dir", certificates, f"docker://{way.address}/team/app:a",
           f"dir:{target}")
    skopeo("list-tags", "--cert-dir", certificates, f"docker://{way.address}/team/app")
    # A relative Location counts where something is pushed.
    for client in PUSHERS:
        name = f"team/{client.name}:1"
        client.push(bench, way.address, layout, "single", name, ca=way.tls.ca)
        client.pull(bench, way.address, name, ca=way.tls.ca)
    process.stop()


@check("bench")
def a_range_that_ends_before_it_begins_is_416(fixtures, bench):
    upstream = cached.Upstream(bench, "files")
    data = b"0123456789" * 100
    for where in ["off", bench.fresh("cache")]:
        proxy = upstream.proxy(where)
        for repository in ["cold/app", "cold/app"]:
            digest = upstream.seed_blob(repository, data)
            reply = proxy.request("GET", f"/v2/{repository}/blobs/{digest}",
                                  headers={"Range": "bytes=500-0"})
            field = reply.getheader("Content-Range")
            want((reply.status, field) == (416, f"bytes */{len(data)}"), reply.status, field)
            want(proxy.get(f"/v2/{repository}/blobs/{digest}").body == data, "another blob")


@check("files")
def a_wrong_password_stays_unauthorized(fixtures, rig):
    proxy = login_proxy(fixtures.bench, rig)
    source = f"oci:{fixtures.layout.folder}:single"
    target = f"docker://{proxy.address}/team/wrong:1"
    begin = time.monotonic()
    for number in range(WRONG_TRIES):
        fails(f"try {number}", skopeo, "copy", "--dest-tls-verify=false", "--dest-creds",
              f"{CLIENT_USER}:wrong-{number}", source, target)
    took = time.monotonic() - begin
    want(took < WRONG_SECONDS_MAX, "wrong passwords took", took)
