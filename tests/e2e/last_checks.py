"""What is checked last: `make run`, and the logs of every proxy that the other checks started."""

import json
import os

import identity_checks
from checks import check, want
from login_checks import CLIENT_PASSWORD, CLIENT_TOKEN
from parts import PASSWORD, ROOT, Host, basic, free_port, skopeo, wait_until

# A build on a slow machine, when nothing of it is built yet.
BUILD_SECONDS = 900


@check("files", everywhere=True)
def no_secret_in_any_debug_log(fixtures, rig):
    secrets = {
        "AWS secret key": rig.aws.secret,
        "token": PASSWORD,
        "Basic header": basic().removeprefix("Basic "),
        "presigned query": "X-Amz-Signature",
        "presigned credential": "X-Amz-Credential",
        "wrong secret": "wrong/Secret",
        "client's password": CLIENT_PASSWORD,
        "client's Basic header": CLIENT_TOKEN,
        "hash of it": "$2y$05$",
        **identity_checks.SECRETS,
    }
    logs = [p for p in fixtures.bench.processes if p.name.startswith("proxy")]
    want(any("DEBUG" in log.text() for log in logs), "no DEBUG line: nothing was tested")
    for log in logs:
        for what, secret in secrets.items():
            lines = [line for line in log.text().splitlines() if secret in line]
            want(not lines, f"{what} in the log of {log.name}: {lines[:1]}")


@check("layout")
def make_run_serves_the_stand_in_without_a_terminal(fixtures, _layout):
    # The stand-in once ended with its standard input, which is empty wherever nobody types.
    port = free_port()
    names = ["HOME", "CARGO_HOME", "CARGO_TARGET_DIR", "RUSTUP_HOME"]
    home = {name: os.environ[name] for name in names if name in os.environ}
    env = {**home, "LISTEN_PORT": str(port)}
    process = fixtures.bench.start("make-run", ["make", "--silent", "-C", ROOT, "run"], env)
    host = Host(process, port)
    wait_until(process, "a proxy", lambda: host.get("/readyz").status == 200, BUILD_SECONDS)
    listed = json.loads(host.get("/v2/_catalog").body)
    want(listed == {"repositories": ["sample/hello"]}, listed)
    image = f"docker://{host.address}/sample/hello:1.0"
    skopeo("inspect", "--tls-verify=false", image)
    pushed = f"docker://{host.address}/team/new:1.0"
    skopeo("copy", "--src-tls-verify=false", "--dest-tls-verify=false", image, pushed)
    skopeo("inspect", "--tls-verify=false", pushed)
    process.stop()
