"""Conformance by difference: what a client gets through the proxy is what it gets from the registry
behind it, step by step, but for what is listed here with its reason.
"""

import concurrent.futures

from checks import check, redirecting_files, want
from conformance import Run, differences, workflows
from parts import basic

# A step's name is "workflow: step"; a difference is "step: field: direct 'x', ours 'y'".
ALLOWED = [
    (r": (body: direct 'no error document', ours 'errors \w+'"
     r"|Content-Type: direct 'text/plain', ours 'application/json')$",
     "an error that is no document becomes one (protocol.md 2)"),
    (r": Docker-Distribution-API-Version: direct None, ours 'registry/2.0'$",
     "docker-registry leaves it out where no handler of its own answers"),
    (r"^sha512: \w+ \w+: Docker-Content-Digest: direct 'sha256:\w+', ours 'sha512:\w+'$",
     "the digest that the client named, as the specification wants it"),
    (r"^manifest errors: \w+ (sha256:\w+|t:a:g): (status: direct '(500|404)', ours '400'"
     r"|body: direct .*, ours 'errors DIGEST_INVALID')$",
     "what looks like a digest and is none is refused here (protocol.md 3)"),
    (r"^manifest errors: PUT too large: status: direct '400', ours '413'$",
     "the status that the specification names"),
    (r"^tags: \w+\?n=0: ", "no names and no Link, as the specification has it"),
    (r"^tags: tags\?n=x: ", "no number: 400, as the specification has it"),
    (r"^tags: HEAD: ", "a HEAD is a GET without the body (RFC 9110 §9.3.2)"),
    (r"^(referrers: not a digest): ", "400, as the specification has it"),
    (r"^other errors: (GET of no upload: (status: direct '404', ours '405'|body: )"
     r"|name \w+ \w+( \w+)?: (status: direct '404', ours '400'|body: ))",
     "names that cannot be never reach the registry (protocol.md 3)"),
    (r"^ranges: (again )?(x|-0|0-1,4-5): ",
     "ranges that a server may ignore are ignored, whoever has the blob (RFC 9110 §14.2)"),
    (r"^ranges: (again )?500-0: ",
     "416 with the length, as most registries have it; others send the whole (RFC 9110 §14.2)"),
    (r"^ranges: (again )?\d+-\d*: (body|Content-Type|Docker-Content-Digest): direct (None|'text/pl)",
     "a 416 has no body that a specification determines"),
    (r"^manifests: GET accepting (\*/\*|what it will): ",
     "docker-registry hides OCI manifests from who does not name them; not here (protocol.md 12)"),
]

# What ECR's ways are made into (protocol.md 33).
MENDED = [
    (r"(PATCH|first|second): status: direct '201', ours '202'$", "the specification's status"),
    (r": Docker-Content-Digest: direct None, ours 'sha\d+:\w+'$", "ECR leaves it out, as S3 does"),
    (r": Docker-Upload-UUID: direct None, ours 'given'$", "older clients want it"),
    (r": PUT [^:]+: Location: direct None, ours '/v2/[^']+/manifests/sha256:\w+'$",
     "the specification wants it"),
    (r": GET Location of .*: only ours$", "which the step follows"),
    (r"^(tags|deletion): \S.*: Content-Type: direct 'text/plain', ours 'application/json'$",
     "lists are JSON"),
    (r"^tags: tags\?n=x: ", "no number: 400, as the specification has it"),
]


def registry(bench, kind):
    """A registry, and where its blobs come from if not from itself."""
    folder = bench.fresh("storage-conformance")
    if kind == "ecr":
        layers = bench.layer_host(["--files", folder])
        # Who may come in is for the front to say, which needs no bcrypt for it.
        storage = {**redirecting_files(folder, layers), "auth": {}}
        return bench.front(bench.registry(storage), "--quirks"), layers.address
    storage = {"storage": {
        "filesystem": {"rootdirectory": folder},
        "delete": {"enabled": True},
        "redirect": {"disable": True},
        "maintenance": {"uploadpurging": {"enabled": False}},
    }}
    if kind == "complete":
        return bench.front(bench.registry({**storage, "auth": {}})), ""
    return bench.registry(storage), ""


def compare(fixtures, kind, cache):
    """The same workflows against a registry and, through the proxy, against another like it; with
    a cache twice, so that what the first round left in it counts."""
    bench = fixtures.bench
    direct, _ = registry(bench, kind)
    behind, blob_hosts = registry(bench, kind)
    env = {**fixtures.aws.env(), "ECR": behind.url, "BLOB_HOSTS": blob_hosts}
    env["CACHE_DIR"] = bench.fresh("cache-conformance") if cache else "off"
    proxy = bench.proxy(env, name=f"proxy-conformance-{kind}")
    allowed = ALLOWED + (MENDED if kind == "ecr" else [])
    for number in range(2 if cache else 1):
        runs = [Run(direct, {"Authorization": basic()}, "conformance"),
                Run(proxy, {}, "conformance")]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(workflows, runs))
        want(len(runs[0].notes) > 500, "only", len(runs[0].notes), "steps")
        lines = differences(runs[0].notes, runs[1].notes, allowed)
        want(not lines, f"round {number + 1}:\n" + "\n".join(lines))
    for process in [proxy.process, direct.process, behind.process]:
        process.stop()


@check("bench")
def conformance_of_a_plain_registry_uncached(fixtures, _bench):
    compare(fixtures, "plain", cache=False)


@check("bench")
def conformance_of_a_plain_registry_cached(fixtures, _bench):
    compare(fixtures, "plain", cache=True)


@check("bench")
def conformance_with_referrers_and_chunks_in_order_uncached(fixtures, _bench):
    compare(fixtures, "complete", cache=False)


@check("bench")
def conformance_with_referrers_and_chunks_in_order_cached(fixtures, _bench):
    compare(fixtures, "complete", cache=True)


@check("bench")
def conformance_of_ecrs_ways_uncached(fixtures, _bench):
    compare(fixtures, "ecr", cache=False)


@check("bench")
def conformance_of_ecrs_ways_cached(fixtures, _bench):
    compare(fixtures, "ecr", cache=True)
