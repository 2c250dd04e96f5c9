#!/usr/bin/env python3
"""Cuts the power at random moments of a proxy's work, and looks at what is left.

strace records every change that the proxy makes to its cache directory, with the bytes. A power cut
after any of them is then made up from the record: what no fsync has made durable may be lost. So
the very binary is tried that users run, and no file system has to be trusted.

* Names are lost from a random point on: file systems with a journal keep their order, and a name
  is durable when its directory was synced after it. (With POWER_REORDER=1 any of them may be lost,
  as on file systems without one.)
* Of bytes that were not synced, each write by itself is kept, lost, or left as zeros; one over bytes
  that were synced is kept or lost.

Run by `make power-cuts`; CUTS (200) and SEED change what it does.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import cached
from parts import SEED, Bench, Failed, end_on_signals, proxy_command

CALLS = ("open,openat,creat,close,write,pwrite64,pwritev,ftruncate,rename,renameat,renameat2,"
         "unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,link,linkat,copy_file_range,fallocate,"
         "fsetxattr,fremovexattr")
LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))$", re.S)
START_SECONDS = 60
QUIET = {"PATH": os.environ["PATH"], "LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": "0",
         "AWS_EC2_METADATA_DISABLED": "true", "LOG_LEVEL": "INFO"}


class Fault(Exception):
    """What a power cut has broken."""


# === recording ===


class Record:
    """The changes below a folder, in order, out of what strace wrote of processes that ran one
    after the other."""

    def __init__(self, root):
        self.root, self.ops, self.fds, self.count, self.sizes = root, [], {}, 0, {}
        # What each name means at the end of what was read so far: the number of a file.
        self.names = {root: 0}

    def read(self, trace):
        """Adds what one process did, and removes what strace wrote of it."""
        begun, self.fds = {}, {}
        with open(trace, encoding="latin-1") as lines:
            for line in lines:
                found = LINE.match(line.rstrip("\n"))
                if not found:
                    continue
                pid, resumed, rest, name, arguments = found.groups()
                if resumed:
                    name, arguments = resumed, begun.pop(pid, "") + rest
                    if name == "close":
                        continue
                elif arguments.endswith("<unfinished ...>"):
                    begun[pid] = arguments.removesuffix("<unfinished ...>")
                    if name == "close":
                        # Its number may be given out again before the call is seen to end.
                        self.fds.pop(int(begun[pid].rstrip(", )")), None)
                    continue
                self.add(name, arguments)
        os.remove(trace)

    def add(self, name, text):
        """One call that has ended."""
        text, _, result = text.rpartition(" = ")
        if result.startswith("-1") or result.startswith("?"):
            return
        arguments = split(text.rstrip().removesuffix(")"))
        handler = getattr(self, "call_" + name, None)
        if handler is None:
            raise Fault(f"the record has a call that is not understood: {name}({text[:200]}")
        handler(arguments, result)

    def below(self, path):
        """True for what belongs to the cache."""
        return path == self.root or path.startswith(self.root + "/")

    def path(self, folder, name):
        """The path that a call with a directory's number names."""
        name = unescape(name).decode()
        if not name.startswith("/") and folder != "AT_FDCWD":
            known = self.fds.get(int(folder))
            name = f"{known[0]}/{name}" if known else "/elsewhere"
        return name

    def op(self, *what):
        """Notes a change."""
        self.ops.append(what)

    def call_openat(self, arguments, result):
        path, flags = self.path(arguments[0], arguments[1]), arguments[2]
        if not self.below(path):
            self.fds.pop(int(result.split()[0]), None)
            return
        number = self.names.get(path)
        if number is None and "O_CREAT" in flags:
            self.count += 1
            number = self.names[path] = self.count
            self.op("create", path, number)
        elif "O_TRUNC" in flags:
            self.sizes[number] = 0
            self.op("truncate", number, 0)
        self.fds[int(result.split()[0])] = [path, number, None if "O_APPEND" in flags else 0]

    def call_open(self, arguments, result):
        self.call_openat(["AT_FDCWD", *arguments], result)

    def call_close(self, arguments, _):
        self.fds.pop(int(arguments[0]), None)

    def call_write(self, arguments, result):
        known = self.fds.get(int(arguments[0]))
        if known:
            size, start = int(result), known[2]
            if start is None:
                start = self.sizes.get(known[1], 0)
            else:
                known[2] += size
            self.wrote(known[1], start, unescape(arguments[1])[:size])

    def call_pwrite64(self, arguments, result):
        known = self.fds.get(int(arguments[0]))
        if known:
            data = unescape(arguments[1])[:int(result)]
            self.wrote(known[1], int(arguments[3]), data)

    def wrote(self, number, start, data):
        """Notes bytes, and how long the file is."""
        self.sizes[number] = max(self.sizes.get(number, 0), start + len(data))
        self.op("write", number, start, data)

    def call_fsetxattr(self, arguments, _):
        known = self.fds.get(int(arguments[0]))
        if known:
            self.op("mark", known[1], unescape(arguments[1]), unescape(arguments[2]))

    def call_fremovexattr(self, arguments, _):
        known = self.fds.get(int(arguments[0]))
        if known:
            self.op("mark", known[1], unescape(arguments[1]), None)

    def call_ftruncate(self, arguments, _):
        known = self.fds.get(int(arguments[0]))
        if known:
            self.sizes[known[1]] = int(arguments[1])
            self.op("truncate", known[1], int(arguments[1]))

    def call_fsync(self, arguments, _):
        known = self.fds.get(int(arguments[0]))
        if known:
            folder = known[0] if self.names.get(known[0]) in (0, None) or known[1] is None else None
            self.op("sync", known[1], known[0] if folder else None)

    call_fdatasync = call_fsync

    def call_mkdir(self, arguments, _):
        path = unescape(arguments[0]).decode()
        if self.below(path):
            self.op("mkdir", path)

    def call_mkdirat(self, arguments, _):
        path = self.path(arguments[0], arguments[1])
        if self.below(path):
            self.op("mkdir", path)

    def call_rmdir(self, arguments, _):
        self.remove(unescape(arguments[0]).decode())

    def call_unlink(self, arguments, _):
        self.remove(unescape(arguments[0]).decode())

    def call_unlinkat(self, arguments, _):
        self.remove(self.path(arguments[0], arguments[1]))

    def remove(self, path):
        """A name goes."""
        if self.below(path):
            self.names.pop(path, None)
            self.op("remove", path)

    def call_rename(self, arguments, _):
        self.rename(*(unescape(word).decode() for word in arguments))

    def call_renameat(self, arguments, _):
        self.rename(self.path(*arguments[:2]), self.path(*arguments[2:4]))

    call_renameat2 = call_renameat

    def rename(self, old, new):
        """A name means another file."""
        if self.below(new):
            number = self.names[new] = self.names.pop(old, None)
            self.op("rename", old, new, number)


def split(text):
    """The arguments of a call; strings hold no comma, as every byte in them is escaped."""
    return [word.strip() for word in text.split(", ")]


def unescape(word):
    """The bytes of a string in strace's `-xx`."""
    return bytes.fromhex(word.strip('"').replace("\\x", ""))


# === the cut ===


class Disk:
    """What a disk holds after a power cut that followed `cut` changes."""

    def __init__(self, record, cut, chance, reorder):
        self.chance, ops = chance, record.ops[:cut]
        named = [at for at, op in enumerate(ops) if op[0] in ("create", "mkdir", "remove", "rename")]
        synced = self.synced_names(ops, named)
        self.horizon = cut
        if reorder:
            kept = {at for at in named if at in synced or chance.random() < 0.5}
        else:
            least = max(synced, default=-1)
            self.horizon = chance.choice([least, cut, chance.randint(least, cut)])
            kept = {at for at in named if at <= self.horizon}
        self.names, self.folders = {}, {record.root}
        for at in named:
            if at in kept:
                self.apply(ops[at])
        self.bytes = self.contents(ops)
        # A mark is a change of the file's inode: when it is lost, the one before it stays.
        self.marks, last_sync = {}, {op[1]: at for at, op in enumerate(ops) if op[0] == "sync"}
        for at, op in enumerate(ops):
            if op[0] == "mark" and (at < last_sync.get(op[1], -1) or at <= self.horizon):
                self.marks[op[1]] = op[2:]

    @staticmethod
    def synced_names(ops, named):
        """The changes of names that a sync of their directory has made durable."""
        synced, waiting = set(), {}
        for at, op in enumerate(ops):
            if op[0] == "sync" and op[2]:
                synced.update(waiting.pop(op[2], []))
            elif op[0] in ("create", "mkdir", "remove", "rename"):
                waiting.setdefault(os.path.dirname(op[2] if op[0] == "rename" else op[1]),
                                   []).append(at)
        return synced & set(named)

    def apply(self, op):
        kind, path = op[0], op[1]
        if kind == "create":
            self.make_above(path)
            self.names[path] = op[2]
        elif kind == "mkdir":
            self.make_above(path)
            self.folders.add(path)
        elif kind == "remove":
            self.names.pop(path, None)
            self.folders.discard(path)
        else:
            # The file is there even if the making of its first name is lost.
            self.make_above(op[2])
            self.names.pop(path, None)
            self.names[op[2]] = op[3]

    def make_above(self, path):
        """A journal that has a name has its folders; without order their making may be lost."""
        folder = os.path.dirname(path)
        while folder not in self.folders and len(folder) > 1:
            self.folders.add(folder)
            folder = os.path.dirname(folder)

    def contents(self, ops):
        """The bytes of each file: what was synced, and of the rest a part."""
        last_sync = {op[1]: at for at, op in enumerate(ops) if op[0] == "sync"}
        mode = self.chance.choice(["kept", "lost", "zeros", "any"])
        files, synced = {}, {}
        for at, op in enumerate(ops):
            if op[0] == "sync":
                synced[op[1]] = len(files.get(op[1], b""))
            if op[0] not in ("write", "truncate"):
                continue
            data = files.setdefault(op[1], bytearray())
            how = "kept"
            if at > last_sync.get(op[1], -1):
                how = self.chance.choice(["kept", "lost", "zeros"]) if mode == "any" else mode
                # A journal has the lengths of files, too.
                how = "lost" if at > self.horizon else how
            if how == "lost":
                continue
            if op[0] == "truncate":
                del data[op[2]:]
                continue
            start, piece = op[2], op[3]
            data.extend(bytes(max(0, start - len(data))))
            if how == "zeros":
                old = bytes(data[start:min(start + len(piece), synced.get(op[1], 0))])
                piece = old + bytes(len(piece) - len(old))
            data[start:start + len(piece)] = piece
        return files

    def write(self, root, to):
        """Makes the directory."""
        for folder in sorted(self.folders):
            if folder.startswith(root):
                os.makedirs(to + folder.removeprefix(root), exist_ok=True)
        for path, number in self.names.items():
            with open(to + path.removeprefix(root), "wb") as file:
                file.write(self.bytes.get(number, b""))
            name, value = self.marks.get(number, (None, None))
            if value:
                # The proxy is to see another start of the machine.
                os.setxattr(file.name, name, bytes(byte ^ 255 for byte in value[:8]) + value[8:])


# === the proxy ===


class Proxy:
    """A proxy on a cache directory, which `wrap` may record."""

    running = set()

    def __init__(self, command, env, cache, wrap=()):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([*wrap, *command], env={**QUIET, **env, "CACHE_DIR": cache},
                                        stderr=self.log, stdin=subprocess.DEVNULL,
                                        start_new_session=True)
        self.running.add(self)
        self.address = self.wait_for(r"listening on (127\.0\.0\.1:\d+)")
        if cache != "off":
            # Offline, a directory that was lost while it was made stays as it is.
            self.wait_for("cache was not counted|cache counted" if "OFFLINE" in env
                          else "cache counted")

    def text(self):
        self.log.seek(0)
        return self.log.read()

    def wait_for(self, pattern):
        """What the log says, once it says so."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            found = re.search(pattern, self.text())
            if found:
                return found.group(found.lastindex or 0)
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        code = self.process.poll()
        raise Fault(f"the proxy (exit code {code}) does not say {pattern!r}:\n"
                    f"{self.text()[-3000:]}")

    def ask(self, method, target, data=None, headers=None):
        """Status, body and headers; a reply that is cut has no body."""
        request = urllib.request.Request(f"http://{self.address}{target}", data, headers or {},
                                         method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.read(), reply.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None, error.headers
        except (OSError, urllib.error.URLError, ValueError, EOFError) as error:
            return 0, None, {"error": str(error)}
        except Exception as error:  # http.client.IncompleteRead and its like
            return 0, None, {"error": str(error)}

    def kill(self):
        # With strace, which would leave it running.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()
        self.running.discard(self)

    def stop(self):
        self.process.terminate()
        code = self.process.wait(60)
        if code != 0:
            raise Fault(f"the proxy ended with {code}:\n{self.text()[-3000:]}")
        self.kill()


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


IMAGE = "application/vnd.oci.image.manifest.v1+json"


def push(proxy, tag, seed):
    """Pushes an image of noise; its manifest and blobs."""
    noise = random.Random(seed)
    blobs = [noise.randbytes(noise.randint(1000, 250_000)) for _ in range(3)]
    def describe(data, kind):
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest_of(data),
                "size": len(data)}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": IMAGE,
                           "config": describe(blobs[0], "config.v1+json"),
                           "layers": [describe(data, "layer.v1.tar") for data in blobs[1:]]})
    for data in blobs:
        status, _, headers = proxy.ask("POST", "/v2/team/app/blobs/uploads/", b"")
        if status != 202:
            raise Fault(f"an upload is answered {status}")
        location = headers["Location"]
        location = re.sub(r"^https?://[^/]+", "", location)
        mark = "&" if "?" in location else "?"
        octets = {"Content-Type": "application/octet-stream"}
        status, *_ = proxy.ask("PUT", f"{location}{mark}digest={digest_of(data)}", data, octets)
        if status != 201:
            raise Fault(f"a blob is answered {status}")
    status, *_ = proxy.ask("PUT", f"/v2/team/app/manifests/{tag}", manifest.encode(),
                           {"Content-Type": IMAGE})
    if status != 201:
        raise Fault(f"a manifest is answered {status}")
    return manifest.encode(), {digest_of(data): data for data in blobs}


def pull(proxy, tag, image, must):
    """Pulls an image: every whole answer is right, and `must` one be."""
    manifest, blobs = image
    for target, data in [(f"manifests/{tag}", manifest),
                         *((f"blobs/{digest}", data) for digest, data in blobs.items())]:
        status, body, headers = proxy.ask("GET", f"/v2/team/app/{target}", headers={"Accept": IMAGE})
        if status == 200 and body is not None and body != data:
            raise Fault(f"{target} has wrong bytes")
        if must and (status != 200 or body is None):
            raise Fault(f"{target} is answered {status} {dict(headers)}\n{proxy.text()[-2000:]}")


# === the work, and what must be true after a cut ===


class Work:
    """Pulls, pushes and evictions of a proxy on a small cache, then an import and a proxy that
    prefetches, recorded."""

    def __init__(self, command, env, folder, chance):
        self.command, self.folder = command, folder
        self.env = {**env, "CACHE_TAG_TTL": "forever"}
        self.root = os.path.join(folder, "cache")
        seeding = Proxy(command, env, "off")
        def push_some(proxy, letter, count):
            return {f"{letter}{n}": push(proxy, f"{letter}{n}", chance.random())
                    for n in range(count)}
        pulled = push_some(seeding, "t", 12)
        # What is here when the command that brings it has ended: the number of changes by then.
        self.promised = {}
        self.imported, self.prefetched = (push_some(seeding, letter, 2) for letter in "if")
        seeding.kill()
        self.images = {**pulled, **self.imported, **self.prefetched}
        self.record = Record(self.root)
        self.trace = os.path.join(folder, "trace")
        self.wrap = ["strace", "-f", "-qq", "-xx", "-s", "1000000", "--seccomp-bpf",
                     "-e", f"trace={CALLS}", "-e", "signal=none", "-o", self.trace]
        self.small = {**self.env, "CACHE_MAX_SIZE": "2m"}
        archive = self.export()
        self.serve(lambda: push_some(self.proxy, "p", 3), list(pulled), chance)
        self.import_archive(archive)
        self.prefetch()

    def export(self):
        """An archive of the images that are to be imported."""
        archive, names = os.path.join(self.folder, "images.tar"), self.names(self.imported)
        env = {**self.env, "CACHE_DIR": os.path.join(self.folder, "other-cache")}
        self.run(["pull", *names], env)
        self.run(["export", *names, "--to", archive], env)
        return archive

    @staticmethod
    def names(images):
        """What the settings and commands call them."""
        return [f"team/app:{tag}" for tag in images]

    def run(self, arguments, env, wrap=()):
        """Runs a command of the binary to its end."""
        ran = subprocess.run([*wrap, *self.command, *arguments], env={**QUIET, **env},
                             stdin=subprocess.DEVNULL, capture_output=True, text=True,
                             timeout=START_SECONDS)
        if ran.returncode:
            raise Fault(f"{arguments} ended with {ran.returncode}: {ran.stdout}{ran.stderr}")

    def serve(self, push_more, tags, chance):
        """A proxy that clients pull from and push to, until it has evicted."""
        self.proxy = Proxy(self.command, self.small, self.root, self.wrap)
        threads = [threading.Thread(target=self.pull_some, args=(chance.sample(tags, 12),))
                   for _ in range(2)]
        for thread in threads:
            thread.start()
        self.images.update(push_more())
        for thread in threads:
            thread.join()
        self.proxy.wait_for("cache evicted")
        # The index follows within seconds.
        time.sleep(4)
        self.end_proxy()

    def end_proxy(self):
        """Ends the proxy, and reads what it did."""
        # A signal to strace would not reach the proxy.
        pid = self.proxy.process.pid
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
            os.kill(int(children.read().split()[0]), signal.SIGTERM)
        self.proxy.stop()
        self.record.read(self.trace)

    def import_archive(self, archive):
        """An import, for which other images have to go."""
        self.run(["import", archive], {**self.small, "CACHE_DIR": self.root}, self.wrap)
        self.record.read(self.trace)
        self.promised.update(dict.fromkeys(self.imported, len(self.record.ops)))

    def prefetch(self):
        """A proxy that prefetches, for which other images have to go."""
        names = ",".join(self.names(self.prefetched))
        env = {**self.small, "PREFETCH": names, "PREFETCH_INTERVAL": "1s"}
        self.proxy = Proxy(self.command, env, self.root, self.wrap)
        said = self.proxy.wait_for("prefetch round ended.*")
        self.end_proxy()
        if '"images_failed":0' not in said:
            raise Fault(f"not all is prefetched: {said}")
        self.promised.update(dict.fromkeys(self.prefetched, len(self.record.ops)))

    def pull_some(self, tags):
        for tag in tags:
            pull(self.proxy, tag, self.images[tag], False)

    def cut(self, to, chance, reorder):
        """One power cut; raises a fault when anything is wrong afterwards."""
        ops = self.record.ops
        # Not before the layout is there: then there is nothing to lose. Now and then just when a
        # command has ended, and says so.
        cut = chance.randint(1, len(ops))
        if chance.random() < 0.1:
            cut = chance.choice(list(self.promised.values()))
        disk = Disk(self.record, cut, chance, reorder)
        disk.write(self.root, to)
        self.check_blobs(to, cut)
        # Without order, the name of an evicted image may come back: it counts as absent.
        evicted = {os.path.basename(op[1]) for op in ops[:cut] if op[0] == "remove"}
        self.check_tags(to, evicted if reorder else set())
        offline = Proxy(self.command, {**self.env, "OFFLINE": "true"}, to)
        for tag, image in self.images.items():
            pull(offline, tag, image, self.is_promised(tag, cut))
        offline.kill()
        online = Proxy(self.command, self.env, to)
        for tag in chance.sample(list(self.images), 4):
            pull(online, tag, self.images[tag], True)
        online.stop()
        self.check_blobs(to, 0)

    def is_promised(self, tag, cut):
        """True for an image that was here for good, and of which nothing was evicted since."""
        begun = self.promised.get(tag)
        if begun is None or begun > cut:
            return False
        manifest, blobs = self.images[tag]
        names = {digest.removeprefix("sha256:") for digest in [digest_of(manifest), *blobs]}
        gone = {os.path.basename(op[1]) for op in self.record.ops[begun:cut] if op[0] == "remove"}
        return not gone & {tag, *names}

    def check_blobs(self, to, cut):
        """Blobs are what their names say, and none is lost that was durable."""
        folder = os.path.join(to, "blobs/sha256")
        found = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        # A start makes and removes an empty file in each folder; the next one does it again.
        found.discard("temp-probe")
        for name in found:
            with open(os.path.join(folder, name), "rb") as file:
                if hashlib.sha256(file.read()).hexdigest() != name:
                    raise Fault(f"the blob {name} has wrong bytes: {self.story(name, cut)}")
        place, waiting, durable = os.path.join(self.root, "blobs/sha256"), set(), set()
        for op in self.record.ops[:cut]:
            if op[0] == "rename" and os.path.dirname(op[2]) == place:
                waiting.add(os.path.basename(op[2]))
            elif op[0] == "remove" and os.path.dirname(op[1]) == place:
                waiting.discard(os.path.basename(op[1]))
                durable.discard(os.path.basename(op[1]))
            elif op[0] == "sync" and op[2] == place:
                durable |= waiting
        if durable - found:
            raise Fault(f"blobs were durable and are lost: {durable - found}")

    def story(self, name, cut):
        """What the record says of a blob, for a fault."""
        made = {op[1] for op in self.record.ops if op[0] == "rename" and op[2].endswith(name)}
        numbers = {op[2] for op in self.record.ops if op[0] == "create" and op[1] in made}
        def short(op):
            return tuple(len(word) if isinstance(word, bytes) else word for word in op)
        told = [(at, short(op)) for at, op in enumerate(self.record.ops[:cut])
                if op[1] in numbers or name in str(op[1:3])]
        return f"cut at {cut}: {told}"

    def check_tags(self, to, evicted):
        """A tag that can be read leads to a manifest that is there."""
        for folder, _, files in os.walk(os.path.join(to, "repos")):
            for name in files if os.path.basename(folder).startswith("_tags") else []:
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    text = file.read()
                entries = json.loads(text)["entries"] if text.strip("\0") else []
                for entry in entries:
                    path = os.path.join(to, "blobs", *entry["digest"].split(":"))
                    if not os.path.exists(path) and os.path.basename(path) not in evicted:
                        raise Fault(f"the tag {name} leads to {entry['digest']}, which is not here")


def cuts(command, env, folder, count, seed, reorder=False):
    """`count` power cuts, over records of several runs; how many changes each run made."""
    chance, sizes = random.Random(seed), []
    try:
        for at in range(count):
            if at % 50 == 0:
                shutil.rmtree(os.path.join(folder, "run"), ignore_errors=True)
                os.makedirs(os.path.join(folder, "run"))
                work = Work(command, env, os.path.join(folder, "run"), chance)
                sizes.append(len(work.record.ops))
            to = os.path.join(folder, f"cut-{at}")
            work.cut(to, chance, reorder)
            shutil.rmtree(to)
    except Fault as fault:
        raise Fault(f"power cut {at} (SEED={seed}): {fault}") from fault
    finally:
        for proxy in list(Proxy.running):
            proxy.kill()
    return sizes


def main():
    """Runs the cuts; the exit code tells whether everything was right."""
    end_on_signals()
    count, reorder = int(os.environ.get("CUTS") or 200), bool(os.environ.get("POWER_REORDER"))
    print(f"# {count} power cuts of {proxy_command()[0]}: SEED={SEED} repeats the moments")
    try:
        with Bench() as bench:
            upstream = cached.Upstream(bench, "files")
            sizes = cuts(proxy_command(), upstream.env, bench.fresh("cuts"), count, SEED, reorder)
    except (Fault, Failed) as fault:
        print(f"not ok: {fault}")
        return 1
    print(f"ok: {count} power cuts in {sizes} changes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
