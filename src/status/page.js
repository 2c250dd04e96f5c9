"use strict";
// Every text from outside goes into the page as text (textContent), never as markup.
const POLL_MS = 2000, PAGE = 20, HISTORY_MS = 60000, SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const host = location.host, plain = location.protocol !== "https:";
let status = null, offset = 0, historyAt = 0, failing = null, timer = 0, asked = 0, drawn = "";

function el(tag, className, ...content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  for (const part of content) if (part !== null && part !== undefined) node.append(part);
  return node;
}

function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// Replaces what is in a node if it would look otherwise: nothing flickers, and no focus is lost.
function put(id, ...content) {
  const node = byId(id), next = el(node.tagName, "", ...content);
  if (!node.isEqualNode(next)) {
    const same = node.childNodes.length === next.childNodes.length;
    if (same && node.children.length) [...next.childNodes].forEach((child, i) => merge(node.childNodes[i], child));
    else node.replaceChildren(...next.childNodes);
  }
}

// Keeps elements whose form is the same, so that bars move and open details stay open.
function merge(old, next) {
  if (old.nodeType === 3 && next.nodeType === 3) { if (old.data !== next.data) old.data = next.data; return; }
  const fits = old.nodeName === next.nodeName && old.childNodes.length === next.childNodes.length && !old.ownerSVGElement;
  if (!fits || old.onclick || next.onclick) { if (!old.isEqualNode(next)) old.replaceWith(next); return; }
  for (const { name, value } of next.attributes) if (name !== "style" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (next.style.width) old.style.width = next.style.width;
  [...next.childNodes].forEach((child, i) => merge(old.childNodes[i], child));
}

function bytes(count) {
  if (count === null || count === undefined) return "unknown";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1000 && unit < 5) { count /= 1024; unit += 1; }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

const number = (count) => count.toLocaleString("en");

function span(seconds) {
  seconds = Math.round(seconds);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (minutes < 60) return seconds < 600 ? `${minutes} min ${seconds % 60} s` : `${minutes} min`;
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${days} days`;
}

function ago(text) {
  const node = el("time", "", "unknown");
  const seconds = (Date.parse(status.now) - Date.parse(text)) / 1000;
  if (!Number.isFinite(seconds) || Date.parse(text) === 0) return node;
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  const words = hours >= 48 ? `${Math.floor(hours / 24)} days` : hours ? `${hours} h` : minutes ? `${minutes} min` : `${Math.floor(seconds / 5) * 5} s`;
  node.textContent = seconds < 5 ? "just now" : `${words} ago`;
  node.dateTime = text;
  node.title = new Date(text).toLocaleString();
  return node;
}

function bar(part, label, kind) {
  const fill = el("div"), node = el("div", `bar ${kind || ""}`, fill);
  const percent = Math.max(0, Math.min(100, Number.isFinite(part) ? part * 100 : NaN));
  node.setAttribute("role", "progressbar");
  node.setAttribute("aria-label", label);
  if (Number.isFinite(percent)) {
    node.setAttribute("aria-valuenow", Math.round(percent));
    fill.style.width = `${percent}%`;
  } else node.classList.add("unknown");
  return node;
}

const facts = (pairs) => el("dl", "", ...pairs.map(([name, value]) => el("div", "", el("dt", "", name), el("dd", "", value))));

function copyButton(text, what) {
  const button = el("button", "", "Copy");
  button.type = "button";
  button.setAttribute("aria-label", `Copy ${what}`);
  button.onclick = async () => {
    try { await navigator.clipboard.writeText(text); } catch {
      // Plain http has no clipboard; an area that is selected has.
      const area = el("textarea", "hidden");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = "Copied";
    byId("copied").textContent = `Copied ${what}`;
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  return button;
}

function drawHead() {
  const { identity, registries } = status;
  const light = failing ? "unknown" : status.state;
  byId("light").className = `light ${light}`;
  const sentence = failing ? `No answer from the proxy since ${failing.toLocaleTimeString()}.` : status.sentence;
  if (byId("sentence").textContent !== sentence) byId("sentence").textContent = sentence;
  const words = { ready: "ready", cache_only: "cache alone", not_ready: "not ready", unknown: "no answer" };
  document.title = `${words[light]} · aws-ecr-proxy`;
  const who = identity ? identity.arn || "an identity not yet named" : status.offline ? "OFFLINE: nobody is asked" : "No AWS identity: the upstream needs no token";
  const details = [who, identity && identity.source && `from ${identity.source}`, identity && identity.account && `account ${identity.account}`];
  byId("about").textContent = `${details.filter(Boolean).join(" · ")} · up for ${span(status.uptime_s)}`;
  byId("version").textContent = `aws-ecr-proxy ${status.version} (${status.commit})`;
}

function drawTransfers() {
  const { running, downloads, uploads, unlisted } = status.transfers;
  byId("now-count").textContent = running.length ? `${downloads} down, ${uploads} up` : "";
  const items = running.map((t) => {
    const stuck = t.idle_s >= 10;
    const what = t.kind === "push" ? "↑" : "↓";
    const way = { fill: "upstream → cache", pull: t.source === "cache" ? "cache → client" : "upstream → client", push: "client → upstream" }[t.kind];
    const digest = t.digest ? ` ${t.digest.slice(0, 19)}` : "", name = t.repository + digest;
    const done = t.total_bytes === null ? bytes(t.bytes) : `${bytes(t.bytes)} of ${bytes(t.total_bytes)}`;
    const state = stuck ? el("span", "tag warn", `no byte for ${span(t.idle_s)}`)
      : el("span", "", `${bytes(t.bytes_per_second)}/s${t.left_s === null ? "" : `, ${span(t.left_s)} left`}`);
    const who = t.kind === "fill" ? `${t.clients} ${t.clients === 1 ? "client" : "clients"} waiting` : t.peer || "";
    return el("li", "",
      el("div", "row", el("span", "name", `${what} ${t.repository}`, el("span", "mono", digest)), el("span", "", done)),
      bar(t.bytes / t.total_bytes, `${name}: ${done}`, stuck ? "low" : ""),
      el("div", "row quiet", el("span", "", `${way} · ${who} · for ${span(t.age_s)}`), state));
  });
  const more = downloads + uploads + unlisted - running.length;
  if (more > 0) items.push(el("li", "quiet", `and ${number(more)} more`));
  put("transfers", ...(items.length ? items : [el("li", "empty", "Nothing is on its way.")]));
}

function drawRegistries() {
  const items = status.registries.map((r) => {
    const open = r.breaker === "open", t = r.token;
    const badge = status.offline ? el("span", "tag", "not asked") : open ? el("span", "tag bad", "out of reach") : el("span", "tag", "is asked");
    const node = el("div", "item", el("div", "row", el("span", "name", r.name), badge));
    if (t && t.left_s !== null) {
      const part = t.left_s / t.life_s;
      node.append(bar(part, `Life of the token that is left: ${span(t.left_s)}`, t.left_s < Math.min(3600, t.life_s / 4) ? "low" : ""),
        el("div", "row quiet", el("span", "", `Token for ${r.region}: ${span(t.left_s)} left`),
          el("span", "", t.renews_s === null ? "being renewed now" : `renewal in ${span(t.renews_s)}`)));
    } else if (t) node.append(bar(0, "No token", "out"), el("p", "quiet", t.renews_s === null ? "No token yet" : `No token; next try in ${span(t.renews_s)}`));
    if (t && t.last_error) node.append(el("p", "error", t.last_error));
    if (r.last_error) node.append(el("p", open ? "error" : "quiet", "Last error ", ago(r.last_error_at), `: ${r.last_error}`));
    return node;
  });
  put("registries", ...(items.length ? items : [el("p", "empty", "No registry is known yet.")]));
}

function drawCache() {
  const c = status.cache;
  if (!c) return put("cache", el("p", "empty", "The cache is off (CACHE_DIR)."));
  const part = c.used_bytes / c.quota_bytes;
  const pinned = bytes(c.pinned_bytes) + (c.is_full_of_pins ? ": no room for others" : "");
  const scrub = c.scrub_percent !== null ? `${c.scrub_percent} %` : c.scrub_ended ? ago(c.scrub_ended) : "none yet";
  put("cache",
    el("div", "row", el("span", "name", `${bytes(c.used_bytes)} used`), el("span", "", `of ${bytes(c.quota_bytes)}`)),
    bar(part, `Cache: ${bytes(c.used_bytes)} of ${bytes(c.quota_bytes)}`, part > .95 ? "low" : ""),
    facts([["Free on the disk", bytes(c.free_bytes)], ["Evicted in 24 h", bytes(status.day.evicted_bytes)],
      ["Damaged blobs", number(c.damaged_blobs)], ["Last scrub", scrub], ["Pinned", pinned], ["Write failures", number(c.write_failures)], ["Directory", el("span", "mono", c.directory)]]));
}

const LABELS = { hit: "from the cache", stale: "stale", miss: "from upstream", other: "other", refused: "refused", failed: "failed",
  saved_bytes: "from the cache", upstream_bytes: "from upstream" };

// A day of minutes as stacked bars of 15 minutes each.
function chart(history, names, title, big, format) {
  const BARS = 96, EACH = 15, sums = [];
  for (let i = 0; i < BARS; i += 1) {
    const end = history.minutes - (BARS - 1 - i) * EACH, start = Math.max(0, end - EACH);
    sums.push(names.map((name) => (end > 0 ? history[name].slice(start, end).reduce((a, b) => a + b, 0) : 0)));
  }
  const total = (row) => row.reduce((a, b) => a + b, 0);
  const top = Math.max(1, ...sums.map(total));
  const image = svg("svg", { viewBox: `0 0 ${BARS * 4} 100`, preserveAspectRatio: "none", role: "img" });
  sums.forEach((row, i) => {
    let y = 100;
    const group = svg("g", {}), label = svg("title", {});
    const minutes = (BARS - 1 - i) * EACH, parts = names.map((name, k) => row[k] && `${format(row[k])} ${LABELS[name]}`);
    label.textContent = `${minutes ? `${span(minutes * 60)} ago` : "now"}: ${parts.filter(Boolean).join(", ") || "nothing"}`;
    group.append(label, svg("rect", { x: i * 4, y: 0, width: 4, height: 100, fill: "transparent" }));
    row.forEach((count, k) => {
      const height = count ? Math.max(1, count / top * 100) : 0;
      y -= height;
      if (count) group.append(svg("rect", { x: i * 4 + .5, y: Math.max(0, y), width: 3, height, class: `c-${names[k]}` }));
    });
    image.append(group);
  });
  const all = names.map((name, k) => [name, total(sums.map((row) => row[k]))]).filter(([, sum]) => sum);
  image.setAttribute("aria-label", `${title}, 24 hours: ${all.map(([name, sum]) => `${format(sum)} ${LABELS[name]}`).join(", ") || "nothing"}`);
  const legend = el("div", "legend", ...all.map(([name, sum]) => el("span", "", el("i", `c-${name}`), `${format(sum)} ${LABELS[name]}`)));
  return el("figure", "", el("figcaption", "quiet", title, el("span", "big", big)), image,
    el("div", "axis", el("span", "", "24 h ago"), el("span", "", "now")), legend);
}

function drawCharts(history) {
  const day = status.day, requests = ["hit", "stale", "miss", "other"], errors = ["refused", "failed"];
  const sum = (names) => names.reduce((a, name) => a + day[name], 0);
  byId("charts").replaceChildren(
    chart(history, requests, "Requests", number(sum(requests)), number),
    chart(history, ["saved_bytes", "upstream_bytes"], "Bytes saved by the cache", bytes(day.saved_bytes), bytes),
    chart(history, errors, "Errors", number(sum(errors)), number));
}

function pullName(image) {
  const first = status.registries[0], other = first && first.name !== image.registry;
  return `${host}/${other ? `${image.registry}/` : ""}${image.repository}:${image.tag}`;
}

function drawImages() {
  const { list, matching, total, is_whole: whole } = status.images;
  byId("image-count").textContent = `${number(matching)}${matching === total ? "" : ` of ${number(total)}`}${whole ? "" : " (not all were looked at)"}`;
  const first = status.registries[0];
  const cell = (className, label, ...content) => {
    const td = el("td", className, ...content);
    td.setAttribute("role", "cell");
    if (label) td.dataset.label = label;
    return td;
  };
  const rows = list.map((image) => {
    const name = el("span", "name", `${image.repository}:${image.tag}`);
    const other = first && first.name === image.registry ? null : el("div", "quiet", image.registry);
    const named = image.incomplete.filter((platform) => platform !== "any").join(", ");
    const lacks = image.incomplete.length ? el("div", "quiet", named ? `incomplete: ${named}` : "incomplete") : null;
    const platforms = image.platforms.join(", ") || (lacks ? "" : "—");
    const row = el("tr", "", cell("", "", name, other), cell("", "Platforms", platforms, lacks),
      cell("num", "Size", bytes(image.bytes)), cell("when", "Pulled", ago(image.pulled)), cell("when", "Confirmed", ago(image.confirmed)),
      cell("", "", copyButton(`docker pull ${pullName(image)}`, `the pull command of ${image.repository}:${image.tag}`)));
    row.setAttribute("role", "row");
    return row;
  });
  const none = el("tr", "", cell("empty", "", total ? "No image fits." : "No image was pulled yet."));
  none.firstChild.colSpan = 6;
  byId("images").replaceChildren(...(rows.length ? rows : [none]));
  byId("pager").hidden = matching <= PAGE;
  byId("page-at").textContent = `${number(offset + 1)} to ${number(Math.min(matching, offset + PAGE))}`;
  byId("previous").disabled = offset === 0;
  byId("next").disabled = offset + PAGE >= matching;
}

function drawMoves() {
  const items = status.images.moves.slice(0, 10).map((m) => el("li", "", el("div", "row", el("span", "name", `${m.repository}:${m.tag}`), ago(m.at)),
    el("p", "quiet mono", `${m.from} → ${m.to}`)));
  put("moves", ...(items.length ? items : [el("li", "empty", "None.")]));
}

function drawFailures() {
  const items = status.failures.slice(0, 20).map((f) => el("li", "",
    el("div", "row", el("span", "mono", `${f.method} ${f.target}`), el("span", f.status >= 500 ? "tag bad" : "tag warn", String(f.status))),
    el("p", "error", f.error), el("p", "quiet", ago(f.at), ` · ${f.peer} · request `, el("span", "mono", f.request))));
  put("failures", ...(items.length ? items : [el("li", "empty", "None since the start.")]));
}

function drawUse() {
  const scheme = plain ? "http" : "https", registry = (status.registries[0] || { name: "REGISTRY" }).name;
  const image = status.images && status.images.list[0];
  const name = image ? pullName(image) : `${host}/REPOSITORY:TAG`;
  const [, path, tag] = /^[^/]*\/(.*):(.*)$/.exec(name) || ["", "REPOSITORY", "TAG"];
  if (drawn === registry + name) return;
  drawn = registry + name;
  const local = /^(localhost|127\.|\[::1\])/.test(host);
  const lines = [
    ["docker", plain && !local ? `Once, in /etc/docker/daemon.json: { "insecure-registries": ["${host}"] }` : "", `docker pull ${name}`],
    ["containerd", `In /etc/containerd/certs.d/${registry}/hosts.toml; images keep their ECR names.`,
      `server = "${scheme}://${host}"\n\n[host."${scheme}://${host}"]\n  capabilities = ["pull", "resolve", "push"]`],
    ["podman", "In /etc/containers/registries.conf.d/ecr.conf; images keep their ECR names.",
      `[[registry]]\nprefix = "${registry}"\nlocation = "${host}"${plain ? "\ninsecure = true" : ""}`],
    ["Flux", "No secretRef, and no job that fetches ECR tokens.",
      `apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nmetadata: { name: app, namespace: flux-system }\nspec:\n  interval: 10m\n  url: oci://${host}/${path}\n${plain ? "  insecure: true\n" : ""}  ref: { tag: "${tag}" }`],
  ];
  const items = lines.map(([client, note, text], i) => {
    const node = el("details", "", el("summary", "", client), note ? el("p", "quiet", note) : null,
      el("div", "snippet", el("pre", "", text), copyButton(text, `the lines for ${client}`)));
    node.open = i === 0;
    return node;
  });
  byId("use").replaceChildren(...items);
}

async function fetchStatus(query) {
  const reply = await fetch(`status.json${query}`, { cache: "no-store" });
  if (!reply.ok) throw new Error(`status ${reply.status}`);
  return reply.json();
}

async function loadImages(start) {
  const turn = asked += 1;
  try {
    const next = await fetchStatus(`?images=${start}&limit=${PAGE}&search=${encodeURIComponent(byId("search").value)}`);
    if (turn !== asked) return;
    offset = start;
    status = { ...status, images: { list: [], moves: [], matching: 0, total: 0, is_whole: true }, ...next };
    drawImages();
    drawMoves();
    drawUse();
  } catch { /* The next poll says that there is no answer. */ }
}

async function poll() {
  clearTimeout(timer);
  const withHistory = Date.now() - historyAt >= HISTORY_MS;
  try {
    const next = await fetchStatus(withHistory ? "?history" : "");
    const ended = status && next.transfers.downloads < status.transfers.downloads;
    status = { ...status, ...next };
    failing = null;
    for (const draw of [drawTransfers, drawRegistries, drawCache, drawFailures, drawUse]) draw();
    if (withHistory) {
      historyAt = Date.now();
      drawCharts(next.history);
    }
    if ((withHistory || ended) && !byId("images").contains(document.activeElement)) loadImages(offset);
  } catch { failing = failing || new Date(); }
  if (status) drawHead();
  else byId("sentence").textContent = "No answer from the proxy.";
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

let typing = 0;
byId("search").oninput = () => { clearTimeout(typing); typing = setTimeout(() => loadImages(0), 250); };
byId("search-form").onsubmit = (event) => { event.preventDefault(); loadImages(0); };
byId("previous").onclick = () => loadImages(Math.max(0, offset - PAGE));
byId("next").onclick = () => loadImages(offset + PAGE);
document.onvisibilitychange = () => { if (!document.hidden) poll(); };
poll();
