#!/usr/bin/env python3
"""The bench: the proxy beside nginx and distribution's registry, on one upstream, in one run.

  benches/bench.py                          everything, 7 rounds; writes docs/performance.{md,svg}
  ROUNDS=1 SIZE=4m WORK="cold TLS" benches/bench.py   a try, of work with such words in its name
  PROXY_BIN=target/debug/aws-ecr-proxy …    another binary than dist/aws-ecr-proxy
  BLOBS=1000000 …                           also a cache of a million blobs
  DOCS=/tmp/found …                         writes there, whatever was run

Each figure is the median of the rounds; contestants take turns, in the other order every second round.
A ratio is the median of the rounds' ratios. Owns the rounds and the table.
"""

import datetime
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import typing

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
sys.dont_write_bytecode = True

import generator  # noqa: E402  before all that loads OpenSSL: it chooses the cipher
import http.client  # noqa: E402

import chart  # noqa: E402
import contestants  # noqa: E402
import works  # noqa: E402
from parts import Bench, Failed, end_on_signals, proxy_command  # noqa: E402

# Fewer are a try, which is not written into the docs.
FULL_ROUNDS = 7
ROUNDS = int(os.environ.get("ROUNDS") or FULL_ROUNDS)
BEGIN, END = "<!-- written by `make bench`: begin -->", "<!-- written by `make bench`: end -->"
TITLES = {"ours": "ours", "nginx": "nginx", "pass": "nginx, no cache", "registry": "distribution"}


class Row(typing.NamedTuple):
    """One figure of all contestants; the ratio to nginx, and each aim with whether it holds."""

    work: str
    figure: str
    values: dict
    ratio: float | None
    aims: list


def measure(lab, work):
    """Has everybody do the work in rounds; figures by contestant and metric."""
    figures = {name: {key: [] for key in work.metrics} for name in work.names}
    for lab.round in range(ROUNDS):
        order = work.names if lab.round % 2 == 0 else work.names[::-1]
        for name in order:
            did = attempt(lab, work, name)
            for key in work.metrics:
                figures[name][key].append(did.get(key, math.nan))
    return figures


def attempt(lab, work, name):
    """One contestant's figures of one round; none when it failed twice. A run of many minutes does
    not end for that."""
    for _ in range(2):
        try:
            return work.function(lab, name)
        except (Failed, OSError, http.client.HTTPException, subprocess.TimeoutExpired) as error:
            print(f"# {name} failed: {work.name}: {error!s:.500}", file=sys.stderr, flush=True)
    return {}


def median(values):
    """The median of what there is; no number when there is none."""
    values = [value for value in values if not math.isnan(value)]
    return statistics.median(values) if values else math.nan


def ratio_of(ours, theirs):
    """The median of the rounds' ratios."""
    return median(mine / other if other else math.nan for mine, other in zip(ours, theirs))


def rows_of(work, found):
    """The rows of one work; `found` has the figures of all work so far."""
    figures = found[work.name]
    rival = next((name for name in ("nginx", "pass") if name in work.names), None)
    for key, metric in work.metrics.items():
        ours = figures["ours"][key]
        ratio = ratio_of(ours, figures[rival][key]) if rival else None
        aims = [(aim, holds(aim, key, figures, found)) for aim in metric.aims]
        values = {name: median(figures[name][key]) for name in work.names}
        yield Row(work.name, f"{metric.name}, {metric.unit}".rstrip(", "), values, ratio, aims)


def holds(aim, key, figures, found):
    """Whether an aim holds; nothing when what it compares with was not measured."""
    sign, number, other = re.fullmatch(r"([≤≥]) ([\d.]+) ?(.*)", aim).groups()
    ours = figures["ours"][key]
    if not other:
        value = median(ours)
    elif other in figures:
        value = ratio_of(ours, figures[other][key])
    elif other in found:
        value = median(ours) / median(found[other]["ours"][key])
    else:
        return None
    return value <= float(number) if sign == "≤" else value >= float(number)


def number(value):
    """Three digits that count."""
    if value is None:
        return ""
    if math.isnan(value):
        return "failed"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells_of(row):
    said = {True: "yes", False: "**no**", None: "?"}
    return [row.work, row.figure, number(row.ratio),
            *(number(row.values.get(name)) for name in TITLES),
            "; ".join(aim for aim, _ in row.aims), "; ".join(said[good] for _, good in row.aims)]


HEAD = ["work", "figure", "ours / nginx", *TITLES.values(), "aim", "holds"]


def show(cells, widths=(38, 32, 12, 9, 9, 15, 12, 28, 5)):
    """Prints a row at once; the rest is still being measured."""
    print("  ".join(f"{cell:<{width}}" if at in (0, 1, 7) else f"{cell:>{width}}"
                    for at, (cell, width) in enumerate(zip(cells, widths))), flush=True)


def first_line(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def circumstances(lab, seconds):
    """The machine, the versions, the date, and how it was measured."""
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    ours, nginx = (generator.cipher_of(generator.Door(door.tls_port, lab.upstream.tls.ca))
                   for door in (lab.contestant("ours", tls=True), lab.contestant("nginx")))
    return f"""\
* {datetime.date.today()}, {ROUNDS} rounds in {seconds / 60:.0f} minutes; {os.cpu_count()} cores \
({model.group(1) if model else platform.machine()}), Linux {platform.release()}.
* {first_line(*proxy_command(), "--version")}; {first_line("nginx", "-v")}; \
{first_line("docker-registry", "--version")}; {first_line("wrk", "-v").split(" [")[0]}.
* TLS: {ours} with ours, {nginx} with nginx; `ssl_buffer_size 16k`.
"""


def is_drawn(row):
    """Whether the chart has this row: those that are for the reader of the table are left out."""
    what = row.figure.split(",")[0]
    return row.ratio is not None and not math.isnan(row.ratio) and (
        bool(row.aims) or what in ("throughput", "requests", "total", "time", "CPU", "p99"))


def write(folder, rows, facts):
    """Writes table and chart; what stands outside of the marks stays."""
    path = os.path.join(folder, "performance.md")
    text = f"{BEGIN}\n{END}\n"
    if os.path.exists(path):
        with open(path) as file:
            text = file.read()
    lines = ["| " + " | ".join(cells) + " |" for cells in [HEAD, ["---"] * len(HEAD)]]
    lines += ["| " + " | ".join(cells_of(row)) + " |" for row in rows]
    table = facts + "\n![ratios to nginx](performance.svg)\n\n" + "\n".join(lines) + "\n"
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise Failed(f"{path} has no lines `{BEGIN}` and `{END}`")
    with open(path, "w") as file:
        file.write(f"{before}{BEGIN}\n{table}{END}{after}")
    with open(os.path.join(folder, "performance.svg"), "w") as file:
        file.write(chart.draw([row for row in rows if is_drawn(row)]))


def bench(chosen):
    """Measures; the rows, and the circumstances."""
    rows, found, begin = [], {}, time.monotonic()
    with Bench() as parts:
        lab = works.Lab(parts, contestants.Upstream(parts))
        try:
            for work in chosen:
                found[work.name] = measure(lab, work)
                for row in rows_of(work, found):
                    rows.append(row)
                    show(cells_of(row))
            return rows, circumstances(lab, time.monotonic() - begin)
        finally:
            lab.close()


def main():
    end_on_signals()
    wanted = (os.environ.get("WORK") or "").split()
    chosen = [w for w in works.WORKS if not wanted or any(word in w.name for word in wanted)]
    if not chosen:
        raise Failed(f"no work has {wanted} in its name: {'; '.join(w.name for w in works.WORKS)}")
    is_try = wanted or works.TRY or ROUNDS < FULL_ROUNDS
    folder = os.environ.get("DOCS") or (None if is_try else os.path.join(ROOT, "docs"))
    if folder:
        os.makedirs(folder, exist_ok=True)
    print(f"# {proxy_command()[0]}, {ROUNDS} rounds, blob of {works.SIZE // works.MIB} MiB", flush=True)
    show(HEAD)
    rows, facts = bench(chosen)
    print(facts)
    if folder:
        write(folder, rows, facts)
    # Nobody else's failure is ours.
    return int(any(math.isnan(row.values["ours"]) for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(f"benches/bench.py: {error}")
