#!/usr/bin/env python3
"""Simulates many nodes that pull one image through two tiers: node -> site replicas -> ECR.

  benches/simulate.py                      1,000 nodes, 1 GB in 20 layers, three replicas
  benches/simulate.py --direct             the same without a site: every node asks ECR
  benches/simulate.py --nodes 50 --json    for programs

A fluid model in steps of time. A node pulls three layers at a time. A replica begins the download of a
layer when the first node asks for it, and sends every node what has come so far; its link is shared
evenly. A layer belongs to one replica, as in deploy/replicas. Processors are left out: links are full
first (docs/scaling.md).
"""

import argparse
import hashlib
import json
import random

GBIT = 125_000_000
# As containerd and docker do.
LAYERS_AT_A_TIME = 3


def options():
    """What can be chosen; rates in Gbit/s."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=1_000_000_000, help="of the image")
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--node-link", type=float, default=1.0)
    parser.add_argument("--site-link", type=float, default=10.0, help="of each replica, outwards")
    parser.add_argument("--way-out", type=float, default=5.0, help="from ECR and S3, in all")
    parser.add_argument("--connection", type=float, default=0.7, help="what S3 sends to one GET")
    parser.add_argument("--spread", type=float, default=10.0, help="seconds in which nodes begin")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds for each layer's head")
    parser.add_argument("--step", type=float, default=0.25, help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--direct", action="store_true", help="no site")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


class Layer:
    """A layer at its replica."""

    def __init__(self, number, size, replicas):
        digest = hashlib.sha256(str(number).encode()).digest()
        self.size, self.replica = size, int.from_bytes(digest[:4], "big") % replicas
        self.here, self.wanted = 0.0, False


class Node:
    """A node: the layers that it waits for, those on their way, and when it is done."""

    def __init__(self, begin, layers):
        self.begin, self.waiting, self.running, self.end = begin, list(layers), {}, None

    def start_layers(self, now, latency):
        while self.waiting and len(self.running) < LAYERS_AT_A_TIME:
            layer = self.waiting.pop(0)
            layer.wanted = True
            # What has come, and from when on.
            self.running[layer] = [0.0, now + latency]


def fetch(layers, given):
    """One step of the downloads from upstream; the bytes that came."""
    running = [layer for layer in layers if layer.wanted and layer.here < layer.size]
    came = 0
    for layer in running:
        rate = min(given.connection, given.way_out / len(running)) * GBIT
        step = min(rate * given.step, layer.size - layer.here)
        layer.here += step
        came += step
    return came


def serve(nodes, now, given):
    """One step of what the replicas send, each node and replica sharing its link evenly."""
    flows = {}
    for node in nodes:
        for layer, (have, since) in node.running.items():
            if since <= now and have < layer.here:
                flows.setdefault(layer.replica, []).append((node, layer))
    asked = {}
    for there in flows.values():
        for node, _ in there:
            asked[node] = asked.get(node, 0) + 1
    for there in flows.values():
        share = given.site_link * GBIT * given.step / len(there)
        for node, layer in there:
            own = given.node_link * GBIT * given.step / asked[node]
            have = node.running[layer][0]
            node.running[layer][0] = min(layer.here, have + min(share, own))


def simulate(given):
    """Runs until the last node has the image; upstream bytes, and when each node was done."""
    chance = random.Random(given.seed)
    size = given.bytes / given.layers
    layers = [Layer(number, size, given.replicas) for number in range(given.layers)]
    nodes = [Node(chance.uniform(0, given.spread), layers) for _ in range(given.nodes)]
    now, upstream, left = 0.0, 0.0, list(nodes)
    while left:
        begun = [node for node in left if node.begin <= now]
        for node in begun:
            node.start_layers(now, given.latency)
        upstream += fetch(layers, given)
        serve(begun, now, given)
        now += given.step
        for node in begun:
            done = [layer for layer, (have, _) in node.running.items() if have >= layer.size - 1]
            for layer in done:
                del node.running[layer]
            if not node.running and not node.waiting:
                node.end = now
        left = [node for node in left if node.end is None]
    return upstream, sorted(node.end - node.begin for node in nodes)


def simulate_direct(given):
    """Every node asks ECR: the way out is shared by all."""
    seconds = given.bytes * given.nodes / (given.way_out * GBIT)
    alone = given.bytes / (min(given.node_link, given.connection * LAYERS_AT_A_TIME) * GBIT)
    return float(given.bytes * given.nodes), [max(seconds, alone)] * given.nodes


def main():
    given = options()
    upstream, times = (simulate_direct if given.direct else simulate)(given)
    found = {
        "nodes": given.nodes, "image_bytes": given.bytes, "upstream_bytes": round(upstream),
        "median_seconds": round(times[len(times) // 2], 1), "slowest_seconds": round(times[-1], 1),
        "upstream_requests": given.layers * (given.nodes if given.direct else 1),
    }
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<18} {value:>18,}")


if __name__ == "__main__":
    main()
