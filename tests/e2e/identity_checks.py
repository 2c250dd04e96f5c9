"""Every source of the AWS identity, each down to a pull through a real registry.

AWS is moto, which verifies signatures and rights of all calls but the first one of a web identity
(unsigned calls are beyond it then): keys, sessions and roles that are not used rightly get no token.
"""

import json
import os
import re
import subprocess
import sys
import urllib.parse

from checks import Fixtures, check, same_files, want
from parts import (
    ACCOUNT,
    HERE,
    REGION,
    VENV,
    Failed,
    Host,
    free_port,
    proxy_command,
    skopeo,
    wait_port,
    wait_until,
)

IMAGE = "team/identity:1"
WEB_TOKEN = "eyJhbGciOiJub25lIn0.c3lzdGVtOnNlcnZpY2VhY2NvdW50OmVjcg.bm9uZQ"
AUTHORIZATION = "container-authorization-token"
# What no log of a proxy may show: last_checks.py looks for it.
SECRETS = {"web identity token": WEB_TOKEN, "container token": AUTHORIZATION}


class Account:
    """A moto with a user who may fetch tokens and assume a role, and that role, which may fetch
    tokens; everybody else may nothing."""

    def __init__(self, bench):
        self.moto = bench.moto(enforce=False)
        self._call("iam", "CreateUser", UserName="puller")
        key = self._call("iam", "CreateAccessKey", UserName="puller")
        self.key = (field(key, "AccessKeyId"), field(key, "SecretAccessKey"))
        token = allow("ecr:GetAuthorizationToken")
        rights = allow("ecr:GetAuthorizationToken", "sts:AssumeRole")
        self._call("iam", "PutUserPolicy", UserName="puller", PolicyName="p", PolicyDocument=rights)
        trust = json.dumps({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}]})
        role = self._call("iam", "CreateRole", RoleName="ecr", AssumeRolePolicyDocument=trust)
        self.role = field(role, "Arn")
        self._call("iam", "PutRolePolicy", RoleName="ecr", PolicyName="p", PolicyDocument=token)
        session = {"RoleArn": self.role, "RoleSessionName": "machine"}
        self.session = self._call("sts", "AssumeRole", "2011-06-15", **session)
        SECRETS["key of the user"] = self.key[1]
        SECRETS["session token"] = field(self.session, "SessionToken")
        self.enforce()

    def enforce(self, free="0"):
        """Verifies signatures and rights, but for so many calls (`inf`: for none)."""
        plain = {"Content-Type": "text/plain"}
        reply = self.moto.request("POST", "/moto-api/reset-auth", free.encode(), plain)
        want(reply.status == 200, "reset-auth answered", reply.status)

    def user(self, name):
        """A key that AWS knows, and no more."""
        self.enforce("inf")
        self._call("iam", "CreateUser", UserName=name)
        key = self._call("iam", "CreateAccessKey", UserName=name)
        self.enforce()
        SECRETS[f"key of {name}"] = field(key, "SecretAccessKey")
        return {"AWS_ACCESS_KEY_ID": field(key, "AccessKeyId"),
                "AWS_SECRET_ACCESS_KEY": field(key, "SecretAccessKey")}

    def grant(self, name, *actions):
        """The user may do this and nothing else."""
        self.enforce("inf")
        policy = {"PolicyName": "p", "PolicyDocument": allow(*actions)}
        self._call("iam", "PutUserPolicy", UserName=name, **policy)
        self.enforce()

    def machine(self):
        """The role's session, as metadata endpoints hand it out."""
        names = {"AccessKeyId": "AccessKeyId", "SecretAccessKey": "SecretAccessKey",
                 "SessionToken": "Token", "Expiration": "Expiration"}
        return {new: field(self.session, old) for old, new in names.items()}

    def _call(self, service, action, version="2010-05-08", **parameters):
        body = urllib.parse.urlencode({"Action": action, "Version": version, **parameters})
        scope = f"Credential=x/20260101/us-east-1/{service}/aws4_request"
        headers = {
            "Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=x",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        reply = self.moto.request("POST", "/", body, headers)
        if reply.status != 200:
            raise Failed(f"moto: {action} answered {reply.status}: {reply.body[:300]}")
        return reply.body.decode()


def allow(*actions):
    """A policy document."""
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def field(xml, name):
    """The text of the first element of that name."""
    return re.search(f"<{name}>(.*?)</{name}>", xml).group(1)


class Site:
    """The account, the registry with an image, and the endpoints of a machine."""

    def __init__(self, fixtures):
        self.bench, self.layout = fixtures.bench, fixtures.layout
        self.behind = fixtures.files
        self.account = Account(self.bench)
        self.behind.seed(self.layout, "single", IMAGE)
        self.known = {"credentials": self.account.machine(), "role": "machine", "region": REGION,
                      "authorization": AUTHORIZATION}
        port, told = free_port(), self.write("metadata.json", json.dumps(self.known))
        command = [sys.executable, os.path.join(HERE, "metadata.py"), str(port), told]
        self.metadata = Host(self.bench.start("metadata", command), port)
        wait_port(self.metadata.process, port)

    def write(self, name, text, mode=0o600):
        """Writes a file; its path."""
        path = self.bench.path(name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def env(self, **settings):
        """In front of the registry, with AWS's address and no identity but what is given."""
        behind = self.behind
        return {
            "ECR": behind.registry.url,
            "BLOB_HOSTS": behind.layers.address,
            "AWS_ENDPOINT_URL": self.account.moto.url,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            **settings,
        }

    def pulls_as(self, name, arn, source, free="0", **settings):
        """A proxy with that identity, a pull through it, and what it says of itself; `free` calls
        of each process are not verified. Gives the proxy."""
        env = self.env(**settings)
        self.account.enforce(free)
        checked = run_check(env)
        want(checked.returncode == 0, "check failed:", checked.stdout)
        self.account.enforce(free)
        proxy = self.bench.proxy(env, name=f"proxy-{name}")
        self.pull(proxy, name)
        for said in (checked.stdout, self.identity_line(proxy)):
            want(arn in said and source in said, f"no {arn} via {source} in:", said)
        said = proxy.get("/readyz").body.decode()
        want(source in said, f"no {source} in /readyz:", said)
        return proxy

    def pull(self, proxy, name):
        """Pulls the image and compares every blob."""
        folder = self.bench.path(f"pulled-as-{name}")
        image = f"docker://{proxy.address}/{IMAGE}"
        skopeo("copy", "--src-tls-verify=false", image, f"dir:{folder}")
        same_files(self.layout, "single", folder)

    @staticmethod
    def identity_line(proxy):
        found = []

        def said():
            found.extend(re.findall(r"^.* INFO identity .*$", proxy.process.text(), re.M))
            return bool(found)

        wait_until(proxy.process, "its identity in the log", said)
        return found[-1]

    def profile(self, name, text):
        """The settings of a config file with the user's keys in the profile `base`."""
        key_id, secret = self.account.key
        base = f"[profile base]\naws_access_key_id={key_id}\naws_secret_access_key={secret}\n"
        return {"AWS_CONFIG_FILE": self.write(f"{name}.ini", base + text), "AWS_PROFILE": "dev"}


def run_check(env, *words):
    """`aws-ecr-proxy check` with these settings."""
    base = {"PATH": os.environ["PATH"], "CACHE_DIR": "off"}
    command = [*proxy_command(), "check", *words]
    return subprocess.run(command, env={**base, **env}, capture_output=True, text=True, timeout=70)


def fails_at(checked, step, remedy):
    """The check failed at that step alone, and says what to do."""
    lines = [line for line in checked.stdout.splitlines() if line.startswith("FAIL")]
    want(checked.returncode == 1 and len(lines) == 1, checked.stdout)
    want(lines[0].startswith(f"FAIL  {step:8}  ") and remedy in lines[0], checked.stdout)


def identities(fixtures):
    """The fixture of this file's checks."""
    if not hasattr(fixtures, "identity_site"):
        fixtures.identity_site = Site(fixtures)
    return fixtures.identity_site


Fixtures.identities = property(identities)


USER = f"arn:aws:iam::{ACCOUNT}:user/puller"
ASSUMED = f"arn:aws:sts::{ACCOUNT}:assumed-role/ecr/"


@check("identities")
def static_keys_pull(_fixtures, site):
    key_id, secret = site.account.key
    keys = {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": secret}
    site.pulls_as("keys", USER, "environment", **keys).process.stop()
    # A wrong secret is noticed by moto, and told.
    wrong = "wrong/Secret+thatIsNobodys0123456789abcd"
    checked = run_check(site.env(**{**keys, "AWS_SECRET_ACCESS_KEY": wrong}))
    want(checked.returncode == 1, "check passed with a wrong secret:", checked.stdout)
    want("check the secret access key" in checked.stdout, checked.stdout)
    want(wrong not in checked.stdout + checked.stderr, "check shows a secret")


@check("identities")
def a_role_with_a_source_profile_pulls(_fixtures, site):
    role = site.account.role
    text = f"[profile dev]\nrole_arn={role}\nsource_profile=base\nrole_session_name=edge-7\n"
    settings = site.profile("role", text)
    proxy = site.pulls_as("role", ASSUMED + "edge-7", f"profile dev, role {role}", **settings)
    proxy.process.stop()


@check("identities")
def the_credentials_of_a_process_pull(_fixtures, site):
    key_id, secret = site.account.key
    document = {"Version": 1, "AccessKeyId": key_id, "SecretAccessKey": secret}
    program = site.write("print-credentials", f"#!/bin/sh\necho '{json.dumps(document)}'\n", 0o700)
    settings = site.profile("process", f"[profile dev]\ncredential_process={program} --any\n")
    site.pulls_as("process", USER, "profile dev's process", **settings).process.stop()


@check("identities")
def a_web_identity_pulls(_fixtures, site):
    role = site.account.role
    settings = {"AWS_WEB_IDENTITY_TOKEN_FILE": site.write("web-token", WEB_TOKEN + "\n"),
                "AWS_ROLE_ARN": role, "AWS_ROLE_SESSION_NAME": "node-1"}
    # What the session then signs is verified.
    source = f"web identity, role {role}"
    proxy = site.pulls_as("web", ASSUMED + "node-1", source, free="1", **settings)
    proxy.process.stop()


@check("identities")
def a_container_pulls(_fixtures, site):
    token = site.write("container-token", AUTHORIZATION)
    settings = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{site.metadata.url}/v1/credentials",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": token}
    source = "container credentials (AWS_CONTAINER_CREDENTIALS_FULL_URI)"
    site.pulls_as("container", ASSUMED + "machine", source, **settings).process.stop()
    # Without the token the endpoint gives nothing, and check says what to set.
    del settings["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"]
    checked = run_check(site.env(**settings))
    want(checked.returncode == 1, checked.stdout)
    want("set AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE" in checked.stdout, checked.stdout)


@check("identities")
def an_instance_pulls_and_tells_the_region(_fixtures, site):
    settings = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_REGION": "",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": site.metadata.url}
    source = "EC2 instance role machine"
    site.pulls_as("instance", ASSUMED + "machine", source, **settings).process.stop()
    seen = json.loads(site.metadata.get("/-/seen").body)
    version_1 = [entry for entry in seen if entry[1].startswith("/latest/") and entry[2] == 401]
    want(not version_1, "asked without a session token:", version_1[:1])
    want(any("placement/region" in entry[1] for entry in seen), "nobody asked for the region")


@check("identities")
def an_instance_like_motos_pulls(_fixtures, site):
    # moto's own metadata: no `Code`, no time to live, keys that it does not know when it verifies.
    aws = site.bench.moto(enforce=False)
    settings = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_REGION": "",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": aws.url, "AWS_ENDPOINT_URL": aws.url}
    source = "EC2 instance role default-role"
    site.pulls_as("instance-moto", f":{ACCOUNT}:", source, **settings).process.stop()


@check("identities")
def an_identity_without_rights_is_told_what_to_grant(_fixtures, site):
    keys = site.account.user("nobody")
    checked = run_check(site.env(**keys))
    want(checked.returncode == 1, "check passed without rights:", checked.stdout)
    fails_at(checked, "token", "grant ecr:GetAuthorizationToken")
    proxy = site.bench.proxy(site.env(**keys), name="proxy-nobody", wait_ready=False)
    wait_until(proxy.process, "a refusal", lambda: "no new ECR token" in proxy.process.text())
    reply = proxy.get(f"/v2/{IMAGE.replace(':', '/manifests/')}")
    want(reply.status == 503, "status", reply.status)
    want(b"AccessDenied" in reply.body and b"via environment" in reply.body, reply.body)
    proxy.process.stop()


@check("identities")
def check_names_each_missing_action(_fixtures, site):
    """IAM's own refusals, down to the registry's."""
    keys = site.account.user("reader")
    behind, port = site.behind, free_port()
    command = [os.path.join(VENV, "python"), os.path.join(HERE, "rights.py"), str(port),
               "--registry", behind.registry.address, "--aws", site.account.moto.url]
    env = {**keys, "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"}
    registry = Host(site.bench.start("rights", command, env), port)
    wait_port(registry.process, port)
    settings = site.env(ECR=registry.url, **keys)
    granted = []
    for step, action in [("token", "ecr:GetAuthorizationToken"), ("manifest", "ecr:BatchGetImage"),
                         ("layer", "ecr:GetDownloadUrlForLayer")]:
        fails_at(run_check(settings, IMAGE), step, f"grant {action}")
        granted.append(action)
        site.account.grant("reader", *granted)
    checked = run_check(settings, IMAGE)
    want(checked.returncode == 0, checked.stdout)
    registry.process.stop()


@check("layout")
def the_shared_files_read_as_botocore_reads_them(_fixtures, _layout):
    command = [sys.executable, os.path.join(HERE, "aws_files.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    want(done.returncode == 0, done.stdout + done.stderr)
