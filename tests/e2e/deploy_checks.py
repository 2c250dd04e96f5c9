"""What deploy/ ships: rendered, validated, and its settings read by the binary."""

import glob
import json
import os
import re
import subprocess

from checks import CHECKS, check, want
from parts import ROOT, proxy_command, run

KUBERNETES = os.path.join(ROOT, "deploy", "kubernetes")
VENV = os.path.join(ROOT, "tests", ".venv", "bin")
# Versions that clouds run now: the oldest, one between, and the newest.
VERSIONS = ["1.30", "1.33", "1.35"]
# Run by the Python that has the packages: every object as a line of JSON, after it was validated.
READ = """
import json, sys, yaml
import kubernetes_validate
for one in yaml.safe_load_all(sys.stdin):
    for version in sys.argv[1:]:
        kubernetes_validate.validate(one, version, strict=True)
    print(json.dumps(one))
"""


def read(text, *versions):
    """The objects of a YAML file; each fits the schema of these versions of Kubernetes."""
    lines = run(os.path.join(VENV, "python"), "-c", READ, *versions, input=text)
    return [json.loads(line) for line in lines.splitlines()]


def render(folder, *versions):
    """The objects of a kustomization."""
    # Debian 12's own kubectl cannot read today's kustomizations; this one came with the packages.
    kubectl = os.path.join(VENV, "kubectl")
    return read(run(kubectl, "kustomize", os.path.join(KUBERNETES, folder)), *versions)


def folders():
    """Every folder with a kustomization."""
    found = [os.path.relpath(path, KUBERNETES) for path, _, files in os.walk(KUBERNETES)
             if "kustomization.yaml" in files]
    want(len(found) >= 7, found)
    return sorted(found)


def pick(objects, kind):
    """The one object of a kind."""
    found = [one for one in objects if one["kind"] == kind]
    want(len(found) == 1, kind, found)
    return found[0]


@check("bench")
def kustomizations_are_valid(_fixtures, _bench):
    for folder in folders():
        for one in render(folder, *VERSIONS):
            template = one.get("spec", {}).get("template")
            if template:
                labels = one["spec"]["selector"]["matchLabels"]
                want(labels.items() <= template["metadata"]["labels"].items(), folder, labels)


@check("bench")
def the_base_is_at_the_restricted_level_and_the_overlays_change_what_they_say(_fixtures, _bench):
    overlays = [name for name in folders() if name.startswith("overlays") or name == "base"]
    for folder in overlays:
        pod = pick(render(folder), "Deployment")["spec"]["template"]["spec"]
        want(pod["securityContext"]["runAsNonRoot"], folder)
        want(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", folder)
        want(not pod["automountServiceAccountToken"], folder)
        for volume in pod["volumes"]:
            want(set(volume) & {"emptyDir", "persistentVolumeClaim"}, folder, volume)
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container["securityContext"]
            want(context["allowPrivilegeEscalation"] is False, folder)
            want(context["capabilities"] == {"drop": ["ALL"]}, folder)
            want(not any("hostPort" in port for port in container["ports"]), folder)
            want({"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), folder)
    irsa = pick(render("overlays/irsa"), "ServiceAccount")
    want("eks.amazonaws.com/role-arn" in irsa["metadata"]["annotations"], irsa)
    keys = pick(render("overlays/keys"), "Deployment")["spec"]["template"]["spec"]
    want({"secretRef": {"name": "aws-ecr-proxy"}} in keys["containers"][0]["envFrom"], keys)
    volume = render("overlays/volume")
    want(pick(volume, "Deployment")["spec"]["replicas"] == 1, volume)
    want("PodDisruptionBudget" not in [one["kind"] for one in volume], volume)
    # One place for the port that a node knows.
    port = pick(render("overlays/nodeport"), "Service")["spec"]["ports"][0]["nodePort"]
    node = pick(render("daemonset"), "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    hosts = pick(render("hosts"), "ConfigMap")["data"]["hosts.toml"]
    want(node["ports"][0]["hostPort"] == port and f"http://localhost:{port}" in hosts, port, hosts)


@check("bench")
def the_binary_takes_every_setting_that_deploy_names(_fixtures, _bench):
    for folder in ["base", "daemonset"]:
        settings = pick(render(folder), "ConfigMap")["data"]
        done = subprocess.run([*proxy_command(), "settings"], env=settings, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        want(done.returncode == 0, done.stdout)
        for name, value in settings.items():
            want(name in done.stdout and value in done.stdout, name, done.stdout)
        want("WARN" not in done.stdout, done.stdout)


@check("bench")
def layouts_of_several_proxies_fit_together(_fixtures, bench):
    objects = render("replicas")
    config = [one["data"]["haproxy.cfg"] for one in objects
              if one["kind"] == "ConfigMap" and "haproxy.cfg" in one["data"]]
    path = os.path.join(bench.fresh("haproxy"), "haproxy.cfg")
    with open(path, "w") as file:
        file.write(config[0])
    run("haproxy", "-c", "-f", path, env={**os.environ, "POD_NAMESPACE": "test"})
    with open(os.path.join(ROOT, "deploy", "replicas", "haproxy.cfg")) as file:
        rules = [line for line in file if re.match(r"  (http-request|balance|hash-type|retr)", line)]
    want(len(rules) == 7 and all(rule in config[0] for rule in rules), rules)
    replicas = pick(objects, "StatefulSet")
    names = re.findall(r"^  server \S+ \"([^.]+)\.([^.]+)\.", config[0], re.M)
    name, count = replicas["metadata"]["name"], replicas["spec"]["replicas"]
    want(names == [(f"{name}-{n}", replicas["spec"]["serviceName"]) for n in range(count)], names)
    # Two tiers: nodes ask the site's service, and have no key.
    objects = render("tiers")
    services = [one["metadata"]["name"] for one in objects if one["kind"] == "Service"]
    maps = {one["metadata"]["labels"]["app.kubernetes.io/name"]: one["data"]
            for one in objects if one["kind"] == "ConfigMap"}
    node, site = maps["aws-ecr-proxy-node"], maps["aws-ecr-proxy"]
    want(node["ECR"] in [f"http://{name}:8080" for name in services], node, services)
    want(node["UPSTREAM_AUTH"] == "none" and "UPSTREAM_AUTH" not in site, node, site)
    pod = pick(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    want(not any("secretRef" in source for source in pod["envFrom"]), pod["envFrom"])
    for settings in [node, site, pick_settings("replicas")]:
        done = subprocess.run([*proxy_command(), "settings"], env=settings, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        want(done.returncode == 0 and "WARN" not in done.stdout, settings, done.stdout)


def pick_settings(folder):
    """The settings of the proxy in a kustomization with other maps beside them."""
    maps = [one["data"] for one in render(folder) if one["kind"] == "ConfigMap"]
    return [data for data in maps if "ECR" in data][0]


@check("bench")
def the_systemd_units_are_valid_and_confined(_fixtures, bench):
    folder = bench.fresh("units")
    for name in ["aws-ecr-proxy.service", "aws-ecr-proxy.socket"]:
        with open(os.path.join(ROOT, "deploy", name)) as file:
            text = file.read()
        # Where this machine has the binary.
        text = text.replace("/usr/local/bin/aws-ecr-proxy", os.path.abspath(proxy_command()[0]))
        with open(os.path.join(folder, name), "w") as file:
            file.write(text)
    units = [os.path.join(folder, name) for name in os.listdir(folder)]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    want(done.returncode == 0 and not done.stdout.strip(), done.stdout)
    service = os.path.join(folder, "aws-ecr-proxy.service")
    run("systemd-analyze", "security", "--offline=true", "--threshold=15", service)


@check("bench")
def compose_hands_over_temporary_credentials(_fixtures, _bench):
    with open(os.path.join(ROOT, "deploy", "compose.yaml"), "rb") as file:
        service = read(file.read())[0]["services"]["aws-ecr-proxy"]
    names = {"ECR", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
    want(names <= set(service["environment"]), service)


@check("bench")
def the_manual_page_is_read_without_a_warning(_fixtures, _bench):
    page = run(*proxy_command(), "man")
    done = subprocess.run(["groff", "-ww", "-man", "-Tascii", "-P-cbou"], input=page,
                          capture_output=True, check=False)
    want(done.returncode == 0 and not done.stderr, done.stderr)
    for word in [b"SYNOPSIS", b"--cache-max-size", b"settings"]:
        want(word in done.stdout, word)


# How each command that a reader can paste is tried: the name of a check, or why it is
# not.
PASTED = {
    "docker run --read-only": "image_runs_serves_and_is_healthy",
    "docker pull": "podman_logs_in",
    "docker login": "podman_logs_in",
    "curl localhost:8080/readyz": "image_runs_serves_and_is_healthy",
    "make run": "make_run_serves_the_stand_in_without_a_terminal",
    "make test": "not by itself: it is what runs this",
    "make check": "not by itself: `make test` begins with it",
    "skopeo copy": "skopeo_logs_in",
    "htpasswd -B": "skopeo_logs_in",
    "aws-ecr-proxy pull": "images_are_carried_to_a_site_without_a_network",
    "aws-ecr-proxy export": "images_are_carried_to_a_site_without_a_network",
    "aws-ecr-proxy import": "images_are_carried_to_a_site_without_a_network",
    "ctr -n k8s.io images import": "not tried: containerd needs mounts that a test's container forbids",
}


@check("bench")
def each_command_to_paste_is_tried_or_says_why_not(_fixtures, _bench):
    pages = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
    for place in ["docs", "deploy"]:
        pages += glob.glob(f"{place}/**/*.md", root_dir=ROOT, recursive=True)
    lines = []
    for page in pages:
        with open(os.path.join(ROOT, page)) as file:
            blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", file.read(), re.S | re.M)
        for block in blocks:
            lines += block.replace("\\\n", " ").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    want(len(lines) > 8, "the pages were not read:", lines)
    for line in lines:
        want(any(line.startswith(start) for start in PASTED), "how is this tried?", line)
    names = {one.name for one in CHECKS}
    for start, how in PASTED.items():
        want(any(line.startswith(start) for line in lines), "nobody can paste", start)
        want(how in names or how.startswith("not "), "no check", how)
