"""The end-to-end checks of slow and hostile clients: what `make load` measures, in less time and with
ten times its bounds, since a time on a shared machine says little.
"""

import load
from checks import check, want

HEALTH_MS_MAX = 10 * load.HEALTH_MS_MAX
# `make load` holds on for longer than the idle limit and MIN_RATE's time, 180 s each; who is cut by
# them is shown by the integration tests `slow` and `slow_tls`, with shorter ones.
HOLD_SECONDS = 45
SLOW_SECONDS = 15
REQUESTS = 3000
# Memory of so few requests has not settled yet; `make load` holds the full count to 10 %.
GROWTH_MAX = 0.5


@check("bench")
def two_hundred_slow_readers_disturb_nobody(fixtures, bench):
    upstream = fixtures.load_upstream
    health, factor, peak, _ = load.slow_readers(bench, upstream, seconds=HOLD_SECONDS)
    want(health < HEALTH_MS_MAX, f"/healthz took {health:.0f} ms")
    want(factor < 10 * load.PULL_FACTOR_MAX, f"a pull took {factor:.1f} times as long")
    want(peak < load.RESIDENT_MAX_MB, f"{peak:.1f} MB resident")


def slowhttptest_disturbs_nobody(fixtures, bench, mode):
    """The proxy serves while slowhttptest holds its connections."""
    upstream = fixtures.load_upstream
    health, refused = load.slow_http(bench, upstream, mode, seconds=SLOW_SECONDS)
    want(health < HEALTH_MS_MAX, f"/healthz took {health:.0f} ms")
    want(not refused, "slowhttptest found the proxy unavailable")


@check("bench")
def slowhttptest_slow_headers(fixtures, bench):
    slowhttptest_disturbs_nobody(fixtures, bench, "slow headers")


@check("bench")
def slowhttptest_slow_body(fixtures, bench):
    slowhttptest_disturbs_nobody(fixtures, bench, "slow body")


@check("bench")
def slowhttptest_slow_read(fixtures, bench):
    slowhttptest_disturbs_nobody(fixtures, bench, "slow read")


@check("bench")
def mixed_requests_leave_nothing_behind(fixtures, bench):
    upstream = fixtures.load_upstream
    before, after, _ = load.soak(bench, upstream, REQUESTS, seed="check")
    want(after < before * (1 + GROWTH_MAX), f"resident memory grew from {before} to {after} KiB")
