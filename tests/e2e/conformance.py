"""The workflows of the OCI distribution conformance suite (v1.1 and later), step by step.

`Run` replays them against one registry and notes what the specification names of every answer;
`differences` compares what two registries answered. The data is the same in every run.
"""

import hashlib
import json
import random
import re
import urllib.parse

from parts import Host

IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
BYTES = "application/octet-stream"
ACCEPT = f"{INDEX}, {IMAGE}"

# What the specification names of an answer, and what clients of before it read.
FIELDS = [
    "Content-Range", "Content-Type", "Docker-Content-Digest", "Docker-Distribution-API-Version",
    "Docker-Upload-UUID", "Link", "Location", "OCI-Chunk-Min-Length", "OCI-Filters-Applied",
    "OCI-Subject", "OCI-Tag", "Range", "Warning",
]
UPLOAD = re.compile(r"(/v2/.+/blobs/uploads/)[^/?]+$")
LARGE_MANIFEST_BYTES = 3_900_000
TOO_LARGE_BYTES = 4_500_000
# Where a step goes that a missing `Location` should have led.
NOWHERE = "/v2/nowhere/at/all"


def digest_of(data, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Run:
    """A client of one registry that notes every answer under the name of its step."""

    def __init__(self, host, headers, repository):
        self.host, self.headers = host, headers
        self.repository, self.other = f"{repository}/one", f"{repository}/two"
        self.notes = {}
        self.scope = ""

    # === asking ===

    def ask(self, step, method, target, body=None, **headers):
        """One request, its redirects followed, and a note of the answer."""
        headers = {**self.headers, **{n.replace("_", "-"): v for n, v in headers.items()}}
        # A docker-registry breaks off the error documents of some ranges.
        reply = self.host.request(method, self.path(target), body, headers, broken=True)
        if reply.status in (301, 302, 303, 307, 308):
            reply = self.follow(reply, method, headers)
        name = f"{self.scope}{step}"
        while name in self.notes:
            name += " again"
        self.notes[name] = self.note(method, target, reply)
        return reply

    def follow(self, reply, method, headers):
        """As an HTTP client does: without the login, at another host."""
        url = urllib.parse.urlsplit(reply.getheader("Location"))
        target = url._replace(scheme="", netloc="").geturl()
        if url.netloc in ("", self.host.address):
            return self.host.request(method, target, headers=headers)
        headers = {n: v for n, v in headers.items() if n != "Authorization"}
        return Host(None, url.port, self.host.tls).request(method, target, headers=headers)

    def path(self, target):
        """The target of a URL that must lead back here, or of a path."""
        if target.startswith(self.host.url + "/"):
            return target[len(self.host.url):]
        return target if target.startswith("/") else f"/astray/{target}"

    def note(self, method, target, reply):
        found = {"status": str(reply.status)}
        for field in FIELDS:
            value = reply.getheader(field)
            if value is not None:
                found[field] = self.plain(field, value)
        is_list = "/referrers/" in target or "/tags/list" in target or "/_catalog" in target
        if method in ("GET", "HEAD") and reply.status in (200, 206) and not is_list:
            found["Content-Length"] = str(reply.getheader("Content-Length"))
        if method != "HEAD":
            found["body"] = said(target, reply)
        return found

    def plain(self, field, value):
        """A value without what must differ: names of uploads, addresses, states."""
        if field == "Content-Type":
            return value.partition(";")[0]
        if field == "Docker-Upload-UUID":
            return "given" if value else "empty"
        if field == "Location":
            return UPLOAD.sub(r"\1…", self.path(value).partition("?")[0])
        if field == "Link":
            return re.sub("<([^>]*)>", lambda m: f"<{self.path(m.group(1))}>", value)
        return value

    # === the words of the specification ===

    def blob(self, digest, repository=None):
        return f"/v2/{repository or self.repository}/blobs/{digest}"

    def manifest(self, reference):
        return f"/v2/{self.repository}/manifests/{reference}"

    def begin(self, step, repository=None, query=""):
        """POST; where the upload goes on."""
        target = f"/v2/{repository or self.repository}/blobs/uploads/{query}"
        return self.ask(step, "POST", target, Content_Length="0").getheader("Location") or NOWHERE

    def end(self, step, location, digest, body=None, **headers):
        """PUT of the last bytes, if any, with the digest."""
        target = location + ("&" if "?" in location else "?")
        target += "digest=" + urllib.parse.quote(digest, safe="")
        headers = {"Content_Type": BYTES, "Content_Length": str(len(body or b"")), **headers}
        return self.ask(step, "PUT", target, body, **headers)

    def patch(self, step, location, piece, start):
        headers = {"Content_Type": BYTES, "Content_Length": str(len(piece)),
                   "Content_Range": f"{start}-{start + len(piece) - 1}"}
        return self.ask(step, "PATCH", location, piece, **headers)

    def put_blob(self, data, repository=None):
        """A blob that later steps need."""
        digest = digest_of(data)
        step = f"needed {digest[7:17]} {repository or ''}"
        self.end(f"{step} PUT", self.begin(f"{step} POST", repository), digest, data)
        return {"digest": digest, "size": len(data)}

    def look(self, digest, repository=None):
        """HEAD and GET of a blob."""
        self.ask("HEAD blob", "HEAD", self.blob(digest, repository))
        self.ask("GET blob", "GET", self.blob(digest, repository))

    def drop(self, digest, repository=None):
        """DELETE of a blob, twice, and a look whether it has gone."""
        where = repository or ""
        for step, method in [("DELETE", "DELETE"), ("HEAD gone", "HEAD"), ("GET gone", "GET"),
                             ("DELETE again", "DELETE")]:
            self.ask(f"{step} blob {where}", method, self.blob(digest, repository))


def said(target, reply):
    """The body, as far as the specification determines it."""
    media_type = (reply.getheader("Content-Type") or "").partition(";")[0]
    if reply.status >= 400:
        try:
            errors = json.loads(reply.body)["errors"]
            return "errors " + " ".join(error["code"] for error in errors)
        except (ValueError, LookupError, TypeError):
            return "no error document"
    if media_type.startswith("multipart/"):
        return "parts"
    if re.search("/(tags/list|_catalog|referrers/[^/]*)$", target.partition("?")[0]):
        return json.dumps(json.loads(reply.body), sort_keys=True)
    return f"{len(reply.body)} bytes {digest_of(reply.body)[7:23]}"


def workflows(run, data_seed=1):
    """Every workflow; whatever they leave behind is what they have not deleted."""
    chance = random.Random(data_seed)
    for name, workflow in [
        ("base", base), ("empty", empty), ("blob uploads", uploads), ("chunks", chunks),
        ("mounts", mounts), ("ranges", ranges), ("sha512", sha512),
        ("well-known blobs", well_known), ("bad digests", bad_digests),
        ("manifests", manifests), ("manifest errors", manifest_errors), ("tags", tags),
        ("tag that moves", moving_tag), ("referrers", referrers), ("other errors", other_errors),
        ("deletion", deletion),
    ]:
        run.scope = f"{name}: "
        workflow(run, chance)


def base(run, _chance):
    for method in ["GET", "HEAD"]:
        run.ask(method, method, "/v2/")
    run.ask("without slash", "GET", "/v2")


def empty(run, chance):
    nothing = digest_of(chance.randbytes(32))
    run.ask("tags", "GET", f"/v2/{run.repository}/never/tags/list")
    run.ask("referrers", "GET", f"/v2/{run.repository}/never/referrers/{nothing}")
    for method in ["HEAD", "GET"]:
        run.ask(f"{method} blob", method, run.blob(nothing))
        run.ask(f"{method} manifest", method, run.manifest(nothing), Accept=ACCEPT)


def uploads(run, chance):
    """POST alone, POST and PUT, one PATCH streamed in two ways, and an upload that is given up."""
    outer = run.scope

    def blob(way):
        run.scope = f"{outer}{way}: "
        data = chance.randbytes(512)
        return data, digest_of(data)

    data, digest = blob("POST alone")
    run.ask("GET missing", "GET", run.blob(digest))
    target = f"/v2/{run.repository}/blobs/uploads/?digest={digest}"
    reply = run.ask("POST", "POST", target, data, Content_Type=BYTES,
                    Content_Length=str(len(data)))
    if reply.status == 202:
        reply = run.end("PUT", reply.getheader("Location"), digest, data)
    run.ask("GET Location", "GET", reply.getheader("Location"))
    run.look(digest)
    run.drop(digest)

    data, digest = blob("POST and PUT")
    reply = run.end("PUT", run.begin("POST"), digest, data)
    run.ask("GET Location", "GET", reply.getheader("Location"))
    run.look(digest)
    run.drop(digest)

    for way, body in [("PATCH of known length", lambda data: data),
                      ("PATCH in HTTP chunks", lambda data: iter([data[:100], data[100:]]))]:
        data, digest = blob(way)
        headers = {"Content_Type": BYTES}
        if way == "PATCH of known length":
            headers["Content_Length"] = str(len(data))
        location = run.begin("POST")
        reply = run.ask("PATCH", "PATCH", location, body(data), **headers)
        reply = run.ask("GET state", "GET", reply.getheader("Location"))
        reply = run.end("PUT", reply.getheader("Location"), digest)
        run.ask("GET Location", "GET", reply.getheader("Location"))
        run.look(digest)
        run.drop(digest)

    data, digest = blob("given up")
    location = run.begin("POST")
    run.ask("GET state", "GET", location)
    run.ask("DELETE", "DELETE", location, Content_Length="0")
    run.ask("GET after", "GET", location)
    run.end("PUT after", location, digest, data)
    run.ask("GET blob", "GET", run.blob(digest))


def chunks(run, chance):
    """With `Content-Range`: in one, in several, out of order and then right, the last by PUT."""
    outer = run.scope
    for count in [1, 3]:
        for way in ["", "last by PUT", "out of order", "out of order, last by PUT"]:
            run.scope = f"{outer}{count} {way}: "
            data = chance.randbytes(1024 * count - 5)
            pieces = [data[at:at + 1024] for at in range(0, len(data), 1024)]
            send_chunks(run, data, pieces, way)
    run.scope = f"{outer}overlap: "
    location = run.begin("POST")
    reply = run.patch("first", location, b"x" * 100, 0)
    run.patch("again", reply.getheader("Location"), b"x" * 100, 0)
    reply = run.ask("GET state", "GET", reply.getheader("Location"))
    run.ask("DELETE", "DELETE", reply.getheader("Location") or NOWHERE, Content_Length="0")


def send_chunks(run, data, pieces, way):
    digest, location, start = digest_of(data), run.begin("POST"), 0
    for number, piece in enumerate(pieces):
        if "out of order" in way:
            wrong = start + 1024 if number + 1 < len(pieces) or not start else 0
            run.patch(f"{number} out of order", location, piece, wrong)
            reply = run.ask(f"{number} GET state", "GET", location)
            location = reply.getheader("Location") or location
        if "by PUT" in way and number + 1 == len(pieces):
            span = f"{start}-{start + len(piece) - 1}"
            reply = run.end("PUT", location, digest, piece, Content_Range=span)
        else:
            reply = run.patch(f"{number} PATCH", location, piece, start)
            location = reply.getheader("Location") or location
        start += len(piece)
    if "by PUT" not in way:
        reply = run.end("PUT", location, digest)
    run.ask("GET Location", "GET", reply.getheader("Location") or NOWHERE)
    run.look(digest)
    run.drop(digest)


def mounts(run, chance):
    outer = run.scope
    for way in ["named", "anonymous", "missing"]:
        run.scope = f"{outer}{way}: "
        data = chance.randbytes(512)
        digest = digest_of(data)
        if way != "missing":
            run.put_blob(data, run.other)
        source = "" if way == "anonymous" else f"&from={urllib.parse.quote(run.other, safe='')}"
        query = f"?mount={urllib.parse.quote(digest, safe='')}{source}"
        reply = run.ask("POST", "POST", f"/v2/{run.repository}/blobs/uploads/{query}",
                        Content_Length="0")
        location = reply.getheader("Location") or NOWHERE
        if reply.status == 202:
            reply = run.end("PUT", location, digest, data)
            location = reply.getheader("Location") or NOWHERE
        run.ask("GET Location", "GET", location)
        run.look(digest)
        run.drop(digest)
        if way != "missing":
            run.drop(digest, run.other)


def ranges(run, chance):
    data = chance.randbytes(2048)
    digest = run.put_blob(data)["digest"]
    # The second time from the cache, if there is one.
    for time in ["", "again "]:
        for wanted in ["500-1499", "500-", "-500", "0-", "2000-5000", "500-0", "5000-10000",
                       "2048-", "-0", "x", "0-1,4-5"]:
            run.ask(f"{time}{wanted}", "GET", run.blob(digest), Range=f"bytes={wanted}")
        run.ask(f"{time}whole", "GET", run.blob(digest))
    run.drop(digest)


def sha512(run, chance):
    data = chance.randbytes(512)
    digest = digest_of(data, "sha512")
    reply = run.end("PUT", run.begin("POST"), digest, data)
    run.ask("GET Location", "GET", reply.getheader("Location") or NOWHERE)
    run.look(digest)
    run.drop(digest)


def well_known(run, _chance):
    outer = run.scope
    for name, data in [("empty", b""), ("JSON", b"{}")]:
        run.scope = f"{outer}{name}: "
        digest = digest_of(data)
        run.end("PUT", run.begin("POST"), digest, data)
        run.look(digest)
        run.drop(digest)


def bad_digests(run, chance):
    """The bytes are not what the digest says."""
    data = chance.randbytes(2000)
    digest = digest_of(b"something else")
    target = f"/v2/{run.repository}/blobs/uploads/?digest={digest}"
    run.ask("POST alone", "POST", target, data, Content_Type=BYTES, Content_Length="2000")
    run.end("POST and PUT", run.begin("POST"), digest, data)
    for way in ["PATCH", "chunks", "chunks, last by PUT"]:
        location = run.begin(f"{way}: POST")
        if way == "PATCH":
            reply = run.ask(f"{way}: PATCH", "PATCH", location, data, Content_Type=BYTES,
                            Content_Length="2000")
            run.end(f"{way}: PUT", reply.getheader("Location"), digest)
            continue
        reply = run.patch(f"{way}: first", location, data[:1024], 0)
        if way == "chunks":
            reply = run.patch(f"{way}: second", reply.getheader("Location"), data[1024:], 1024)
            run.end(f"{way}: PUT", reply.getheader("Location"), digest)
        else:
            run.end(f"{way}: PUT", reply.getheader("Location"), digest, data[1024:],
                    Content_Range="1024-1999")
    run.end("no digest", run.begin("no digest: POST"), "", data)
    run.end("not a digest", run.begin("not a digest: POST"), "sha256:x", data)
    run.ask("GET", "GET", run.blob(digest))


def image(run, chance, media_type=IMAGE, artifact=None, subject=None, **more):
    """A manifest whose blobs have been pushed; its bytes."""
    config = b"{}" if artifact else json.dumps(
        {"architecture": "amd64", "os": "linux", "n": chance.random(),
         "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    layer = chance.randbytes(300)
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {"mediaType": EMPTY if artifact else CONFIG, **run.put_blob(config)},
        "layers": [{"mediaType": LAYER, **run.put_blob(layer)}],
        **({"artifactType": artifact} if artifact else {}),
        **({"subject": subject} if subject else {}),
        **more,
    }
    return json.dumps(document).encode()


def put_manifest(run, step, reference, body, media_type=IMAGE, query=""):
    """PUT, and GET of what it names as its place."""
    reply = run.ask(f"PUT {step}", "PUT", run.manifest(reference) + query, body,
                    Content_Type=media_type)
    location = reply.getheader("Location")
    if location:
        run.ask(f"GET Location of {step}", "GET", location, Accept=ACCEPT)
    return {"mediaType": media_type, "digest": digest_of(body), "size": len(body)}


def look_at_manifest(run, step, *references):
    for reference in references:
        kind = "digest" if ":" in reference else reference
        for method in ["HEAD", "GET"]:
            run.ask(f"{step}: {method} {kind}", method, run.manifest(reference), Accept=ACCEPT)


def manifests(run, chance):
    body = image(run, chance)
    for number in range(4):
        put_manifest(run, f"test{number}", f"test{number}", body)
    put_manifest(run, "by digest", digest_of(body), body)
    look_at_manifest(run, "image", "test0", digest_of(body))
    target = run.manifest("test1")
    for accept in ["*/*", IMAGE, INDEX, "application/json"]:
        run.ask(f"GET accepting {accept}", "GET", target, Accept=accept)
    run.ask("GET accepting what it will", "GET", target)

    children = []
    for arch in ["amd64", "arm64"]:
        child = put_manifest(run, arch, "child-" + arch, image(run, chance))
        children.append({**child, "platform": {"os": "linux", "architecture": arch}})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": children}
    for name, document in [
        ("index", index), ("empty index", {**index, "manifests": []}),
        ("index with a field of its own", {**index, "org.example.field": {"a": [1, None]}}),
    ]:
        body = json.dumps(document).encode()
        tag = name.replace(" ", "-")
        descriptor = put_manifest(run, name, tag, body, INDEX)
        look_at_manifest(run, name, tag, descriptor["digest"])
        if name == "index":
            nested = json.dumps({**index, "manifests": [descriptor]}).encode()
    put_manifest(run, "nested index", "nested", nested, INDEX)
    look_at_manifest(run, "nested", "nested", digest_of(nested))

    filler = {f"large-{n}": "A" * 10_000 for n in range(LARGE_MANIFEST_BYTES // 10_000)}
    large = image(run, chance, annotations=filler)
    put_manifest(run, "large", "large", large)
    look_at_manifest(run, "large", "large", digest_of(large))
    artifact = image(run, chance, artifact="application/vnd.example.thing")
    put_manifest(run, "artifact", "artifact", artifact)
    look_at_manifest(run, "artifact", "artifact", digest_of(artifact))
    tagged = image(run, chance)
    query = "?tag=param-1&tag=param-2"
    put_manifest(run, "with tag parameters", digest_of(tagged), tagged, query=query)
    look_at_manifest(run, "with tag parameters", "param-1", digest_of(tagged))


def manifest_errors(run, chance):
    body = image(run, chance)
    # No tag looks like this one, which is how the suite asks for what is not there.
    for reference in [".INVALID_MANIFEST_NAME", "missing", digest_of(b"missing")]:
        look_at_manifest(run, f"missing {reference[:8]}", reference)
        run.ask(f"missing {reference[:8]}: DELETE", "DELETE", run.manifest(reference))
    for reference in ["sha256:totallywrong", "sha256:baddigeststring", "t:a:g"]:
        for method in ["GET", "HEAD", "PUT", "DELETE"]:
            run.ask(f"{method} {reference}", method, run.manifest(reference),
                    body if method == "PUT" else None, Content_Type=IMAGE)
    put_manifest(run, "other bytes than the digest's", digest_of(body), body + b"  ")
    put_manifest(run, "garbage", "garbage", b"blablabla")
    put_manifest(run, "nothing", "nothing", b"")
    put_manifest(run, "other type than it says", "other-type", body, INDEX)
    put_manifest(run, "no type", "no-type", body, "")
    lacks = json.loads(body)
    lacks["layers"][0]["digest"] = digest_of(b"never pushed")
    put_manifest(run, "without its layer", "sparse", json.dumps(lacks).encode())
    child = {"mediaType": IMAGE, "digest": digest_of(b"never"), "size": 5}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [child]}
    put_manifest(run, "without its child", "sparse", json.dumps(index).encode(), INDEX)
    huge = image(run, chance, annotations={"a": "A" * TOO_LARGE_BYTES})
    put_manifest(run, "too large", "huge", huge)
    run.ask("no such tag in the end", "GET", run.manifest("huge"), Accept=ACCEPT)


def tags(run, chance):
    body = image(run, chance)
    for number in range(4):
        put_manifest(run, f"list{number}", f"list{number}", body)
    target = f"/v2/{run.repository}/tags/list"
    for query in ["", "?n=2", "?n=1000", "?n=2&last=list1", "?last=list2", "?n=0", "?n=x",
                  "?last=zzz"]:
        run.ask(f"tags{query}", "GET", target + query)
    run.ask("HEAD", "HEAD", target)
    for query in ["?n=1000", "?n=1", "?n=0"]:
        run.ask(f"catalogue{query}", "GET", "/v2/_catalog" + query)


def moving_tag(run, chance):
    """What is said of a tag is true at once: pushed, pushed anew, and deleted."""
    first, second = image(run, chance), image(run, chance)
    run.ask("before", "GET", run.manifest("moving"), Accept=ACCEPT)
    put_manifest(run, "first", "moving", first)
    look_at_manifest(run, "first", "moving")
    put_manifest(run, "second", "moving", second)
    look_at_manifest(run, "second", "moving")
    put_manifest(run, "first again", "moving", first)
    look_at_manifest(run, "first again", "moving")
    run.ask("DELETE", "DELETE", run.manifest(digest_of(first)))
    look_at_manifest(run, "deleted", "moving", digest_of(first))


def referrers(run, chance):
    """A subject that comes after its first referrers, one with none, and one that never comes."""
    subject_body = image(run, chance)
    subject = {"mediaType": IMAGE, "digest": digest_of(subject_body), "size": len(subject_body)}
    never = {"mediaType": IMAGE, "digest": digest_of(b"never"), "size": 123}
    kinds = {"a": "application/vnd.example.a", "b": "application/vnd.example.b"}

    def attach(name, *, to=subject, **more):
        body = image(run, chance, subject=to, annotations={"org.example.name": name}, **more)
        return put_manifest(run, name, digest_of(body), body)

    def look(step):
        for name, digest in [("subject", subject["digest"]), ("never", never["digest"]),
                             ("none", digest_of(b"none"))]:
            target = f"/v2/{run.repository}/referrers/{digest}"
            run.ask(f"{step}: of {name}", "GET", target)
            for kind in kinds.values():
                query = "?artifactType=" + urllib.parse.quote(kind, safe="")
                run.ask(f"{step}: of {name}{query}", "GET", target + query)

    attached = [attach("a1", artifact=kinds["a"]), attach("config type")]
    look("before the subject")
    put_manifest(run, "subject", "subject", subject_body)
    attached += [attach("a2", artifact=kinds["a"]), attach("b1", artifact=kinds["b"])]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [attached[0]],
                        "artifactType": kinds["b"], "subject": subject}).encode()
    attached.append(put_manifest(run, "index", digest_of(index), index, INDEX))
    attach("of never", to=never, artifact=kinds["a"])
    look("all")
    # The tag that clients fall back to.
    fallback = json.dumps({"schemaVersion": 2, "mediaType": INDEX,
                           "manifests": attached}).encode()
    tag = subject["digest"].replace(":", "-")
    look_at_manifest(run, "fallback before", tag)
    put_manifest(run, "fallback", tag, fallback, INDEX)
    look_at_manifest(run, "fallback", tag)
    run.ask("DELETE a1", "DELETE", run.manifest(attached[0]["digest"]))
    look("one less")
    run.ask("not a digest", "GET", f"/v2/{run.repository}/referrers/sha256:x")


def other_errors(run, _chance):
    digest = digest_of(b"x")
    for step, method, target in [
        ("PUT of a list", "PUT", f"/v2/{run.repository}/tags/list"),
        ("POST of a manifest", "POST", run.manifest("1")),
        ("PUT of a blob", "PUT", run.blob(digest)),
        ("GET of no upload", "GET", f"/v2/{run.repository}/blobs/uploads/"),
        ("name in capitals", "GET", "/v2/UPPER/case/manifests/1"),
        ("name with two slashes", "GET", "/v2/a//b/manifests/1"),
        ("no endpoint", "GET", f"/v2/{run.repository}/elsewhere"),
        ("blob with a wrong digest", "GET", run.blob("sha256:x")),
        ("blob with an odd algorithm", "GET", run.blob("md5:" + "0" * 32)),
    ]:
        run.ask(step, method, target)
    session = f"/v2/{run.repository}/blobs/uploads/00000000-0000-4000-8000-000000000000"
    for method in ["GET", "PATCH", "PUT", "DELETE"]:
        body = b"x" if method == "PATCH" else None
        query = f"?digest={digest}" if method == "PUT" else ""
        headers = {"Content_Length": str(len(body or b"")), "Content_Type": BYTES}
        run.ask(f"{method} of an unknown upload", method, session + query, body, **headers)


def deletion(run, chance):
    body = image(run, chance)
    document = json.loads(body)
    for tag in ["doomed", "doomed-too"]:
        put_manifest(run, tag, tag, body)
    run.ask("tags before", "GET", f"/v2/{run.repository}/tags/list")
    run.ask("DELETE tag", "DELETE", run.manifest("doomed"))
    look_at_manifest(run, "after the tag", "doomed", "doomed-too")
    run.ask("DELETE manifest", "DELETE", run.manifest(digest_of(body)))
    run.ask("DELETE manifest again", "DELETE", run.manifest(digest_of(body)))
    look_at_manifest(run, "after the manifest", "doomed-too", digest_of(body))
    run.ask("tags after", "GET", f"/v2/{run.repository}/tags/list")
    for name, digest in [("config", document["config"]["digest"]),
                         ("layer", document["layers"][0]["digest"])]:
        run.ask(f"HEAD {name} before", "HEAD", run.blob(digest))
        run.ask(f"DELETE {name}", "DELETE", run.blob(digest))
        run.ask(f"HEAD {name}", "HEAD", run.blob(digest))
        run.ask(f"GET {name}", "GET", run.blob(digest))


# === comparing ===


def differences(direct, ours, allowed):
    """Lines that say where two runs differ, but for what is allowed: pairs of a pattern of lines
    and the reason."""
    lines = []
    for step in {**direct, **ours}:
        left, right = direct.get(step), ours.get(step)
        if left is None or right is None:
            lines.append(f"{step}: only {'ours' if left is None else 'direct'}")
            continue
        for field in sorted({*left, *right}):
            values = left.get(field), right.get(field)
            if values[0] != values[1]:
                lines.append(f"{step}: {field}: direct {values[0]!r}, ours {values[1]!r}")
    patterns = [re.compile(pattern) for pattern, _ in allowed]
    return [line for line in lines if not any(p.search(line) for p in patterns)]
