"""The end-to-end check of `make bench`: that it runs and says something. What it says is no matter here."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree

from checks import check, want
from parts import ROOT, Failed, proxy_command

ROWS_LEAST = 15
MADE_BY_HAND = "Made by hand."


@check("bench")
def bench_makes_a_table_of_ratios(fixtures, bench):
    docs = bench.fresh("docs")
    page = os.path.join(docs, "performance.md")
    script = os.path.join(ROOT, "benches", "bench.py")
    marks = [f"<!-- written by `make bench`: {word} -->" for word in ("begin", "end")]
    with open(page, "w") as file:
        file.write(f"{MADE_BY_HAND}\n{marks[0]}\nan old table\n{marks[1]}\n{MADE_BY_HAND}\n")
    env = {**os.environ, "ROUNDS": "1", "SIZE": "4m", "DOCS": docs, "PROXY_BIN": proxy_command()[0],
           "WORK": "plain, cold push paced"}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True,
                          timeout=300)
    if done.returncode != 0:
        raise Failed(f"the bench ended with {done.returncode}: {done.stdout[-500:]} {done.stderr}")
    with open(page) as file:
        text = file.read()
    want(text.count(MADE_BY_HAND) == 2 and "an old table" not in text, "not between its marks:", text)
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()
            if line.startswith("| ")][2:]
    want(len(rows) >= ROWS_LEAST, "too few rows:", text)
    for row in rows:
        want(re.fullmatch(r"[\d.,e+-]+", row[3]), "no ratio to nginx:", row)
    gets = [row[4] for row in rows if row[1].startswith("cold blob") and "GETs" in row[2]]
    want(gets == ["1", "1"], "a cold blob was fetched more than once:", gets)
    xml.etree.ElementTree.parse(os.path.join(docs, "performance.svg"))
