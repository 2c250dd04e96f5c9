"""Headless Chromium, driven by its DevTools protocol. Owns: the browser's process, and a WebSocket
client (RFC 6455) that is just enough for it. Must not: judge what a page shows."""

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request

# A cold start on a busy machine of two cores.
START_ATTEMPTS = 3
START_SECONDS = 60
ANSWER_SECONDS = 60


class BrowserError(Exception):
    """The browser did not do what it was told."""


class WebSocket:
    """One connection; whole text messages both ways."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), ANSWER_SECONDS)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
                             "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                             f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        self.held = b""
        while b"\r\n\r\n" not in self.held:
            self._more()
        head, _, self.held = self.held.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise BrowserError(f"no WebSocket: {head[:200]!r}")

    def _more(self):
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise BrowserError("the browser closed the connection")
        self.held += piece

    def _take(self, count):
        while len(self.held) < count:
            self._more()
        taken, self.held = self.held[:count], self.held[count:]
        return taken

    def send(self, text):
        payload, mask = text.encode(), os.urandom(4)
        length = len(payload)
        if length < 126:
            head = struct.pack("!BB", 0x81, 0x80 | length)
        elif length < 1 << 16:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", 0x81, 0x80 | 127, length)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.socket.sendall(head + mask + masked)

    def receive(self):
        """The next message; raises TimeoutError when none comes."""
        message = b""
        while True:
            first, second = self._take(2)
            length = second & 0x7f
            if length == 126:
                length = struct.unpack("!H", self._take(2))[0]
            elif length == 127:
                length = struct.unpack("!Q", self._take(8))[0]
            message += self._take(length)
            if first & 0x80 and first & 0x0f in (0, 1):
                return message.decode()

    def close(self):
        self.socket.close()


class Browser:
    """One Chromium with one tab. Use as a context."""

    def __init__(self):
        # On a busy machine it ends at its start now and then, before it has opened a page.
        for attempt in range(1, START_ATTEMPTS + 1):
            self._start()
            address = self._address()
            if address:
                break
            self.stop()
            if attempt == START_ATTEMPTS:
                raise BrowserError(f"chromium did not start: {self.said}")
        self.events, self.number = [], 0
        self.socket = WebSocket(address)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _start(self):
        self.folder = tempfile.mkdtemp(prefix="chromium-")
        with open(os.path.join(self.folder, "said"), "wb") as said:
            # The sandbox needs rights that a test in a container has not; the page is our own.
            self.process = subprocess.Popen(
                ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--disable-dev-shm-usage", "--disable-background-networking",
                 "--disable-component-update", "--remote-debugging-port=0", "--hide-scrollbars",
                 f"--user-data-dir={self.folder}", "about:blank"],
                stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)

    def _address(self):
        """The tab's own address; none when the browser ended or took too long."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(os.path.join(self.folder, "DevToolsActivePort")) as file:
                    port = int(file.readline())
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as reply:
                    tabs = [tab for tab in json.load(reply) if tab["type"] == "page"]
                return tabs[0]["webSocketDebuggerUrl"]
            time.sleep(0.1)
        with open(os.path.join(self.folder, "said"), errors="replace") as said:
            self.said = f"it ended with {self.process.poll()}: {said.read()[-1000:]}"
        return None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method, **parameters):
        """Calls a method and waits for its result; events meanwhile are kept."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.receive())
            if message.get("id") == self.number:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']}")
                return message["result"]
            if "method" in message:
                self.events.append(message)

    def run(self, script):
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def open(self, url):
        self.call("Page.navigate", url=url)

    def wait(self, script, seconds=60):
        """Waits until an expression is true; its value."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.2)
        raise BrowserError(f"not within {seconds} s: {script}; the page: {self.text()}")

    def text(self):
        """What the page shows."""
        return self.run("document.body.innerText")

    def show(self, width, theme="light", height=900):
        """Sets the window's width in CSS pixels, and `light` or `dark`."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path):
        """Writes a PNG of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))

    def faults(self):
        """Exceptions, console errors, and what the browser itself complains of."""
        found = []
        for event in self.events:
            method, parameters = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
            if method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
                found.append(str(parameters["args"]))
            if method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(str(parameters["entry"]))
        return found

    def requests(self):
        """The addresses that the page asked for."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]
