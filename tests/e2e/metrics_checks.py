"""Metrics and alerts, as Prometheus' own tool has them."""

import os
import re
import time

from checks import check, want
from parts import ROOT, free_port, run, skopeo

PROMETHEUS = os.path.join(ROOT, "deploy", "prometheus")


def samples(text):
    """Name and labels, and the value."""
    lines = (line for line in text.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@check("files")
def promtool_accepts_the_metrics(fixtures, rig):
    bench, layout = fixtures.bench, fixtures.layout
    rig.seed(layout, "multi", "team/metrics:1")
    own = f"127.0.0.1:{free_port()}"
    env = {**rig.env, "CACHE_DIR": bench.fresh("cache-metrics"), "METRICS_LISTEN": own,
           "METRICS_REPOSITORIES": "true"}
    proxy = bench.proxy(env, name="proxy-metrics")
    for number in range(2):
        folder = bench.fresh(f"metrics-pulled-{number}")
        source = f"docker://{proxy.address}/team/metrics:1"
        skopeo("copy", "--all", "--src-tls-verify=false", source, f"dir:{folder}")
    want(proxy.get("/metrics").status == 404, "metrics are at the registry's address, too")
    text = run("curl", "-sSf", f"http://{own}/metrics")
    said = run("promtool", "check", "metrics", input=text)
    want(not said.strip(), said)
    found = samples(text)
    hits = [value for name, value in found.items()
            if name.startswith("aws_ecr_proxy_requests_total{") and 'cache="hit"' in name]
    want(sum(hits) > 0, found)
    expiry = [value for name, value in found.items() if "token_expiry_timestamp_seconds" in name]
    want(expiry and expiry[0] > time.time(), found)
    want(any('repository="team/metrics"' in name for name in found), found)
    proxy.process.stop()


@check("bench")
def promtool_accepts_the_alerts_and_each_has_a_test(_fixtures, _bench):
    rules = os.path.join(PROMETHEUS, "alerts.yml")
    said = run("promtool", "check", "rules", rules).decode()
    want("SUCCESS" in said, said)
    run("promtool", "test", "rules", os.path.join(PROMETHEUS, "alerts_test.yml"))
    with open(rules) as file:
        alerts = set(re.findall("- alert: (.*)", file.read()))
    with open(os.path.join(PROMETHEUS, "alerts_test.yml")) as file:
        tested = set(re.findall("alertname: (.*)", file.read()))
    want(len(alerts) >= 6 and alerts == tested, alerts ^ tested)
