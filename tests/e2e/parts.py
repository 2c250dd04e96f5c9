"""The parts of an end-to-end bench: real registries, AWS by moto, the proxy, and their ends.

Every port is free when it is chosen, all state lies in one temporary folder, and every process is
ended by its pid. A process also dies with this one, whatever way it ends (`setpriv --pdeathsig`).
"""

import base64
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
VENV = os.path.join(ROOT, "tests", ".venv", "bin")

ACCOUNT = "123456789012"
# What moto's GetAuthorizationToken hands out for that account.
USER, PASSWORD = "AWS", ACCOUNT + "-auth-token"
REGION = "eu-west-1"
# The registry that moto's token names.
ECR_HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
# Another account's, in another region.
OTHER_ECR_HOST = "210987654321.dkr.ecr.us-east-1.amazonaws.com"

# Every kind of manifest, as a client asks for it.
MANIFESTS = ", ".join([
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
])

# What every random choice and every random byte follows from; it is printed, and `SEED=…` gives it.
SEED = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
CHANCE = random.Random(SEED)
# What tells this run from others on the machine.
RUN = os.getpid()

# Ports for servers that cannot choose one themselves: below those that the system gives to clients
# (/proc/sys/net/ipv4/ip_local_port_range), which could take a port between its choice and its use.
SERVER_PORTS = range(10_000, 32_000)

# Long enough for a loaded machine of two cores; nothing waits for it in the good case.
START_SECONDS = 30


class Failed(Exception):
    """A check or a part that did not do what it must."""


class Process:
    """A started process and its log."""

    def __init__(self, name, popen, log):
        self.name, self.popen, self.log = name, popen, log

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def text(self):
        """The whole log."""
        with open(self.log, errors="replace") as file:
            return file.read()

    def stop(self, seconds=10):
        """Ends it; its exit code."""
        if self.alive():
            self.popen.terminate()
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()

    def status(self, field):
        """A field of /proc/PID/status in KiB or as a number, such as VmHWM."""
        with open(f"/proc/{self.pid}/status") as file:
            return int(re.search(rf"^{field}:\s+(\d+)", file.read(), re.M).group(1))


class Bench:
    """A temporary folder and the processes that live in it."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="aws-ecr-proxy-e2e-")
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.stop(5)
        if os.environ.get("KEEP"):
            print("kept:", self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def fresh(self, name):
        """A new folder."""
        return tempfile.mkdtemp(prefix=name + "-", dir=self.folder)

    def start(self, name, command, env=None):
        """Starts `command` with nothing in its environment but PATH, a home and `env`."""
        log = self.path(f"{len(self.processes):02}-{name}.log")
        base = {"PATH": os.environ["PATH"], "HOME": self.folder, "LANG": "C.UTF-8"}
        with open(log, "wb") as file:
            popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**base, **(env or {})},
                cwd=self.folder,
            )
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    # === real parts ===

    def moto(self, enforce, tls=None):
        """A moto server. With `enforce` its address and the only key it knows, which may do nothing
        but fetch a token; signatures are verified from then on."""
        port = free_port()
        # Three actions are free: create the user, its key and its policy.
        env = {"MOTO_ACCOUNT_ID": ACCOUNT}
        if enforce:
            env["INITIAL_NO_AUTH_ACTION_COUNT"] = "3"
        command = [os.path.join(VENV, "python"), os.path.join(VENV, "moto_server")]
        command += ["-H", "127.0.0.1", "-p", str(port)]
        if tls:
            command += ["-s", "-c", tls.chain, "-k", tls.key]
        process = self.start("moto", command, env)
        wait_port(process, port)
        moto = Moto(process, port, tls)
        if enforce:
            moto.make_user()
        return moto

    def layer_host(self, arguments, tls=None):
        """The host that blobs are redirected to (`layers.py`)."""
        port = free_port()
        command = [sys.executable, os.path.join(HERE, "layers.py"), str(port), *arguments]
        if tls:
            command += ["--tls", tls.chain, tls.key]
        process = self.start("layers", command)
        wait_port(process, port)
        return LayerHost(process, port, tls)

    def registry(self, storage, name="registry", tls=None, at=None, relative=False):
        """A docker-registry with the token's user name and password and absolute Locations, or
        `relative` ones; on a free port of 127.0.0.1, or `at` an IP address and port."""
        ip, port = at or ("127.0.0.1", free_port())
        htpasswd = self.path("htpasswd")
        if not os.path.exists(htpasswd):
            with open(htpasswd, "wb") as file:
                file.write(run("htpasswd", "-Bbn", USER, PASSWORD))
        config = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": False}},
            "auth": {"htpasswd": {"realm": "https://ecr.test/", "path": htpasswd}},
            "http": {"addr": f"{ip}:{port}", "secret": "x", "relativeurls": relative},
            **storage,
        }
        if tls:
            config["http"]["tls"] = {"certificate": tls.chain, "key": tls.key}
        file_name = self.path(f"{name}-{port}.yml")
        with open(file_name, "w") as file:
            json.dump(config, file)  # JSON is YAML
        process = self.start(name, ["docker-registry", "serve", file_name])
        wait_port(process, port, ip)
        return Registry(process, port, tls)

    def front(self, registry, *flags, tls=None):
        """A reverse proxy before a registry that has ECR's ways (`front.py`)."""
        port = free_port()
        command = [sys.executable, os.path.join(HERE, "front.py"), str(port), *flags]
        command += ["--registry", registry.address, "--token", basic()]
        if tls:
            command += ["--tls", tls.chain, tls.key]
        process = self.start("front", command)
        wait_port(process, port)
        return Front(process, port, tls)

    def proxy(self, env, name="proxy", wait_ready=True, wrap=(), tls=None):
        """The proxy under test, on a port of its own choice, logging at DEBUG and without a cache
        unless `env` says otherwise; `wrap` is a command that becomes it, `tls` makes it https."""
        if tls:
            env = {"ENABLE_SSL": "true", "SSL_CERTIFICATE": tls.chain, "SSL_KEY": tls.key, **env}
        env = {"LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": "0", "LOG_LEVEL": "DEBUG",
               "CACHE_DIR": "off", **env}
        process = self.start(name, [*wrap, *proxy_command()], env)
        proxy = Proxy(process, wait_listening(process), tls)
        if wait_ready:
            wait_until(process, "a token (/readyz 200)", lambda: proxy.get("/readyz").status == 200)
        return proxy

    def authority(self):
        """A CA of this run, its certificate for 127.0.0.1, localhost and real ECR names."""
        tls = Tls(self.path("ca.pem"), self.path("chain.pem"), self.path("key.pem"))
        ca_key, request, extensions = self.path("ca.key"), self.path("csr"), self.path("ext")
        with open(extensions, "w") as file:
            names = f"DNS:localhost,DNS:{ECR_HOST},DNS:{OTHER_ECR_HOST},IP:127.0.0.1"
            file.write(f"subjectAltName={names}\nbasicConstraints=CA:FALSE\n")
            file.write("extendedKeyUsage=serverAuth\n")
        key_type = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        run("openssl", "req", "-x509", *key_type, "-keyout", ca_key, "-out", tls.ca,
            "-subj", "/CN=e2e CA", "-days", "2")
        run("openssl", "req", *key_type, "-keyout", tls.key, "-out", request,
            "-subj", "/CN=localhost")
        run("openssl", "x509", "-req", "-in", request, "-CA", tls.ca, "-CAkey", ca_key,
            "-CAcreateserial", "-out", tls.chain, "-days", "2", "-extfile", extensions)
        return tls


class Tls:
    """Where a CA and a certificate of it lie."""

    def __init__(self, ca, chain, key):
        self.ca, self.chain, self.key = ca, chain, key


class Host:
    """A server on loopback."""

    def __init__(self, process, port, tls=None):
        self.process, self.port, self.tls = process, port, tls
        # With TLS by name, so that name look-up and server name are part of what is tested.
        self.address = f"localhost:{port}" if tls else f"127.0.0.1:{port}"
        self.url = ("https://" if tls else "http://") + self.address

    def request(self, method, target, body=None, headers=None, timeout=60, broken=False):
        """One request on a connection of its own; the reply with `.body` read to its end, which
        may come too early if `broken` says so."""
        if self.tls:
            context = ssl.create_default_context(cafile=self.tls.ca)
            connection = http.client.HTTPSConnection(self.address, timeout=timeout, context=context)
        else:
            connection = http.client.HTTPConnection(self.address, timeout=timeout)
        try:
            connection.request(method, target, body=body, headers=headers or {})
            reply = connection.getresponse()
            try:
                reply.body = reply.read()
            except http.client.IncompleteRead as error:
                if not broken:
                    raise
                reply.body = error.partial
            return reply
        finally:
            connection.close()

    def get(self, target, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("GET", target, headers=named)


class Moto(Host):
    """AWS."""

    def make_user(self):
        """A user that may fetch tokens; from then on every signature is verified."""
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": "ecr:GetAuthorizationToken", "Resource": "*"}
            ],
        }
        self._iam("CreateUser", UserName="proxy")
        answer = self._iam("CreateAccessKey", UserName="proxy")
        self.key_id = re.search("<AccessKeyId>(.*)</AccessKeyId>", answer).group(1)
        self.secret = re.search("<SecretAccessKey>(.*)</SecretAccessKey>", answer).group(1)
        document = json.dumps(policy)
        self._iam("PutUserPolicy", UserName="proxy", PolicyName="p", PolicyDocument=document)

    def env(self):
        """The settings that let a proxy use this as AWS."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }

    def _iam(self, action, **parameters):
        body = urllib.parse.urlencode({"Action": action, "Version": "2010-05-08", **parameters})
        # moto finds the service by the credential's scope; free actions need no true signature.
        scope = "Credential=x/20260101/us-east-1/iam/aws4_request"
        headers = {
            "Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=x",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        reply = self.request("POST", "/", body, headers)
        if reply.status != 200:
            raise Failed(f"moto: {action} answered {reply.status}: {reply.body[:300]}")
        return reply.body.decode()


class LayerHost(Host):
    """S3."""

    def seen(self):
        return json.loads(self.get("/-/seen").body)

    def cut_after(self, count):
        self.request("POST", f"/-/cut?{count}")

    def rate(self, bytes_per_second):
        self.request("POST", f"/-/rate?{bytes_per_second}")


class Registry(Host):
    """A docker-registry in ECR's place."""

    def manifest(self, repository, reference):
        """The raw manifest, straight from the registry."""
        reply = self.request(
            "GET",
            f"/v2/{repository}/manifests/{reference}",
            headers={"Accept": MANIFESTS, "Authorization": basic()},
        )
        if reply.status != 200:
            raise Failed(f"the registry has no {repository}:{reference}: {reply.status}")
        return reply.body

    def blob_exists(self, repository, digest):
        headers = {"Authorization": basic()}
        target = f"/v2/{repository}/blobs/{digest}"
        return self.request("HEAD", target, headers=headers).status in (200, 307)


class Front(Registry):
    """ECR, as far as a registry can be told from it."""

    def seen(self):
        """How many requests of each kind came, such as `GET blob`."""
        return json.loads(self.get("/-/seen").body)

    def expire(self):
        """The tokens that it gave out are refused from now on."""
        self.request("POST", "/-/expire")


class Proxy(Host):
    """The proxy under test."""


def basic():
    """The token as the registry wants it."""
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def proxy_command():
    """The binary under test: PROXY_BIN, else what `make static` left in dist/."""
    binary = os.environ.get("PROXY_BIN") or os.path.join(ROOT, "dist", "aws-ecr-proxy")
    if not os.access(binary, os.X_OK):
        raise Failed(f"no proxy at {binary}: run `make static`, or name one in PROXY_BIN")
    return [binary]


def free_port():
    """A port nobody listens on now, and that no other process of the checks is likely to try."""
    # Each process begins elsewhere and goes on from where it was.
    _PORTS.setdefault(os.getpid(), os.getpid() * 97)
    for _ in SERVER_PORTS:
        _PORTS[os.getpid()] += 1
        port = SERVER_PORTS[_PORTS[os.getpid()] % len(SERVER_PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Failed(f"no free port from {SERVER_PORTS.start} to {SERVER_PORTS.stop}")


_PORTS = {}


def own_ip(number):
    """A loopback address of this run's own, for servers that need port 443; `number` tells them
    apart."""
    return f"127.{64 + number}.{RUN // 250 % 250}.{1 + RUN % 250}"


def random_bytes(count):
    """Bytes that follow from SEED. Python makes fewer than 256 MiB at a time."""
    piece = 64 * 1024 * 1024
    return b"".join(CHANCE.randbytes(min(piece, count - at)) for at in range(0, count, piece))


def wait_until(process, what, done, seconds=START_SECONDS):
    """Waits for `done()`; fails when the process ends or the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not process.alive():
            raise Failed(f"{process.name} ended with {process.popen.returncode}")
        try:
            if done():
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise Failed(f"{process.name}: no sign of {what} in {seconds} s")


def wait_port(process, port, ip="127.0.0.1"):
    """Waits until somebody listens."""
    def open_now():
        socket.create_connection((ip, port), 1).close()
        return True

    wait_until(process, f"a listener on port {port}", open_now)


def wait_listening(process):
    """The port in the proxy's own `listening on …` line."""
    found = []

    def said():
        match = re.search(r"listening on\D.*?:(\d+)\b", after_time(process.text()))
        if match:
            found.append(int(match.group(1)))
        return bool(match)

    wait_until(process, "`listening on …` in its log", said)
    return found[0]


def after_time(text):
    """Log lines without their time stamps, whose colons look like those of an address."""
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "", text)


def run(*command, **options):
    """Runs a command to its end; its standard output. Fails with all it said."""
    done = subprocess.run(command, capture_output=True, **options)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise Failed(f"`{' '.join(command)}` ended with {done.returncode}: {said[-2000:]}")
    return done.stdout


def skopeo(*arguments):
    """skopeo without a policy file, and with a deadline: a hang is a failure too."""
    return run("skopeo", "--insecure-policy", *arguments, timeout=300)


def end_on_signals():
    """Turns SIGTERM into an exception, so that `Bench` cleans up."""
    def stop(*_):
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, stop)
