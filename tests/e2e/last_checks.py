"""What is checked last: the logs of every proxy that the other checks started."""

from checks import check, want
from parts import PASSWORD, basic


@check("files")
def no_secret_in_any_debug_log(fixtures, rig):
    secrets = {
        "AWS secret key": rig.aws.secret,
        "token": PASSWORD,
        "Basic header": basic().removeprefix("Basic "),
        "presigned query": "X-Amz-Signature",
        "presigned credential": "X-Amz-Credential",
        "wrong secret": "wrong/Secret",
    }
    logs = [p for p in fixtures.bench.processes if p.name.startswith("proxy")]
    want(any("DEBUG" in log.text() for log in logs), "no DEBUG line: nothing was tested")
    for log in logs:
        for what, secret in secrets.items():
            lines = [line for line in log.text().splitlines() if secret in line]
            want(not lines, f"{what} in the log of {log.name}: {lines[:1]}")
