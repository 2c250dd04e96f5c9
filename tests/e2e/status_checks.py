"""The end-to-end checks of the status page, in a real browser (headless Chromium)."""

import glob
import json
import os
import shutil
import subprocess
import time

from browser import Browser
from checks import check, want
from images import Layout
from parts import MANIFESTS, Failed, proxy_command, skopeo, wait_until

# Bytes a second of a slow upstream: a layer of 100 MB takes 40 s, as long as it takes the log to
# say twice where it stands.
SLOW_RATE = 2_500_000
CROWD = 10_000
WIDTHS, THEMES = [1400, 360], ["light", "dark"]
# What a hostile index and a hostile request may bring along.
MARKUP = "<img src=x onerror=alert(1)>"


def cached_proxy(rig, name, folder, **settings):
    """A proxy with a cache, in front of the rig's registry."""
    env = {**rig.env, "CACHE_DIR": folder, "LOG_FORMAT": "json", **settings}
    return rig.bench.proxy(env, name=name)


def pull(rig, proxy, name):
    folder = rig.bench.fresh("status-pulled")
    skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{proxy.address}/{name}",
           f"dir:{folder}")


def open_page(browser, proxy, ready):
    """Opens the page and waits until it shows what it is to show."""
    browser.events.clear()
    browser.open(proxy.url + "/")
    browser.wait("document.querySelectorAll('#charts figure').length === 3"
                 " && document.querySelectorAll('#images tr').length > 0")
    browser.wait(ready)


def shows(*texts):
    """A condition in the page: all these texts are there."""
    return f"{json.dumps(texts)}.every((text) => document.body.innerText.includes(text))"


def no_faults(browser, proxy):
    """Nothing went wrong in the page, and it asked nobody but the proxy."""
    want(not browser.faults(), "the page has faults:", browser.faults()[:3])
    outside = [url for url in browser.requests()
               if not url.startswith((proxy.url + "/", "data:"))]
    want(not outside, "the page asked elsewhere:", outside[:3])


def picture(browser, name):
    """Keeps a picture for whoever wants to look at it (`STATUS_PICTURES=FOLDER`)."""
    folder = os.environ.get("STATUS_PICTURES")
    if folder:
        os.makedirs(folder, exist_ok=True)
        browser.picture(os.path.join(folder, name + ".png"))


@check("files")
def status_page_shows_a_pulled_image(fixtures, rig):
    rig.seed(fixtures.layout, "seeded-multi", "team/seeded-multi:1")
    proxy = cached_proxy(rig, "proxy-status", rig.bench.fresh("status-cache"))
    for _ in range(2):
        pull(rig, proxy, "team/seeded-multi:1")
    with Browser() as browser:
        for width in WIDTHS:
            for theme in THEMES:
                browser.show(width, theme)
                open_page(browser, proxy, shows("Ready: pulls and pushes go to",
                                                "team/seeded-multi:1", "linux/amd64", "MiB"))
                browser.wait("/[1-9][0-9,]* from the cache/.test(document.body.innerText)")
                wide = browser.run("document.documentElement.scrollWidth")
                want(wide <= width, f"the page is {wide} wide in a window of {width}")
                picture(browser, f"pulled-{width}-{theme}")
                no_faults(browser, proxy)
        # The back of each theme is what it should be: dark text on light, and the other way.
        backs = []
        for theme in THEMES:
            browser.show(1400, theme)
            back = browser.run("getComputedStyle(document.body).backgroundColor")
            backs.append(sum(int(part) for part in back[4:-1].split(",")))
        want(backs[0] > 600 and backs[1] < 150, "the themes do not differ:", backs)
        button = "document.querySelector('#images button')"
        want(browser.run(f"{button}.getAttribute('aria-label')")
             == "Copy the pull command of team/seeded-multi:1", "no name on the button")
        browser.run(f"{button}.click()")
        browser.wait(shows("Copied"))


@check("files")
def status_page_follows_a_slow_pull(fixtures, rig):
    rig.seed(fixtures.big, "pull", "team/big-pull:1")
    proxy = cached_proxy(rig, "proxy-status-slow", rig.bench.fresh("status-cache"))
    rig.layers.rate(SLOW_RATE)
    folder = rig.bench.fresh("status-slow")
    pulling = subprocess.Popen(
        ["skopeo", "copy", "--src-tls-verify=false",
         f"docker://{proxy.address}/team/big-pull:1", f"dir:{folder}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Browser() as browser:
            browser.show(1400)
            open_page(browser, proxy, shows("upstream → cache", "1 client waiting", "left"))
            width = "parseFloat(document.querySelector('#transfers .bar > div').style.width)"
            before = browser.wait(f"{width} > 1 && {width}")
            browser.wait(f"{width} > {before}")
            picture(browser, "slow")
            watched = watch(proxy)
            want(any("%" in line and "team/big-pull" in line for line in watched), watched)
            percents = [int(line.split("%")[0].split()[-1]) for line in watched if "%" in line]
            want(max(percents) > min(percents), "no progress in `status --watch`:", percents)
            no_faults(browser, proxy)
            wait_until(proxy.process, "the transfer in the log",
                       lambda: says_where_it_stands(proxy.process.text()), 60)
            rig.layers.rate(0)
            # What is on its way stays slow; the rest is soon there.
            want(pulling.wait(300) == 0, "the pull ended with", pulling.returncode)
            browser.wait(shows("Nothing is on its way.", "team/big-pull:1"), 90)
    finally:
        rig.layers.rate(0)
        pulling.kill()
        pulling.wait()


def says_where_it_stands(text):
    """A line of the log tells bytes and total of the pull."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return any(line.get("kind") == "fill" and line.get("repository") == "team/big-pull"
               and 0 < line["bytes"] < line["bytes_total"] for line in lines)


def watch(proxy, seconds=9):
    """What `aws-ecr-proxy status --watch` prints meanwhile."""
    env = {"PATH": os.environ["PATH"], "LISTEN_HOST": "127.0.0.1",
           "LISTEN_PORT": str(proxy.port)}
    watching = subprocess.Popen([*proxy_command(), "status", "--watch"], env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep(seconds)
    watching.terminate()
    said = watching.communicate(timeout=30)[0].splitlines()
    if not said:
        raise Failed("`status --watch` said nothing")
    return said


@check("files")
def status_page_shows_hostile_names_as_text(fixtures, rig):
    layout = Layout(rig.bench.fresh("hostile-layout"))
    layout.add_index("odd", [1000], [MARKUP])
    rig.seed(layout, "odd", "team/odd:1")
    proxy = cached_proxy(rig, "proxy-status-hostile", rig.bench.fresh("status-cache"))
    index = json.loads(rig.registry.manifest("team/odd", "1"))
    for reference in ["1", *(child["digest"] for child in index["manifests"])]:
        reply = proxy.get(f"/v2/team/odd/manifests/{reference}", Accept=MANIFESTS)
        want(reply.status == 200, reference, "answered", reply.status)
    raw = f"/v2/team/{MARKUP.replace(' ', '/')}/manifests/1"
    want(proxy.request("GET", raw).status == 400, "a target with markup was taken")
    with Browser() as browser:
        browser.show(1400)
        open_page(browser, proxy, shows("team/odd:1", "linux/" + MARKUP, "onerror=alert(1)>"))
        want(browser.run("document.querySelectorAll('img').length") == 0, "markup came alive")
        picture(browser, "hostile")
        no_faults(browser, proxy)


@check("files")
def status_page_with_10_000_images(fixtures, rig):
    rig.seed(fixtures.layout, "seeded", "team/seeded:1")
    folder = rig.bench.fresh("status-crowd")
    proxy = cached_proxy(rig, "proxy-status-crowd", folder)
    pull(rig, proxy, "team/seeded:1")
    proxy.process.stop()
    tag = glob.glob(f"{folder}/repos/*/team/seeded/_tags/1")[0]
    registry = tag[:tag.index("/team/seeded/")]
    for number in range(CROWD):
        tags = f"{registry}/crowd/r{number // 100}/_tags"
        os.makedirs(tags, exist_ok=True)
        shutil.copy(tag, f"{tags}/v{number % 100}")
    proxy = cached_proxy(rig, "proxy-status-crowd", folder)
    with Browser() as browser:
        browser.show(360)
        open_page(browser, proxy, shows("10,001", "1 to 20"))
        browser.run("document.getElementById('next').click()")
        browser.wait(shows("21 to 40"))
        browser.run("const box = document.getElementById('search'); box.value = 'crowd/r42:v7';"
                    "box.dispatchEvent(new Event('input'));")
        browser.wait(shows("11 of 10,001", "crowd/r42:v79"))
        want(browser.run("document.querySelectorAll('#images tr').length") == 11, "rows")
        picture(browser, "crowd-360")
        no_faults(browser, proxy)
