#!/usr/bin/env python3
"""Opens a URL in headless Chromium, waits, and writes a screenshot as PNG.

Fails on an error in the console, an exception, a violated policy, a request
that failed, or a text that never came. Needs Chromium and nothing else: it
speaks DevTools' protocol over a pipe.

  shoot.py http://127.0.0.1:8080/ page.png --expect connected --dark --size 400x800
"""

import argparse, base64, json, os, select, subprocess, sys, tempfile, time


class Browser:
    def __init__(self, program, folder):
        # Chromium reads commands from its descriptor 3 and answers on 4.
        theirs_in, self.out = os.pipe()
        self.inn, theirs_out = os.pipe()
        # Not 3 and 4 yet: dup2 in the child must not close what it is to copy.
        high = [os.dup2(theirs_in, 198), os.dup2(theirs_out, 199)]

        def place():
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu",
             "--disable-extensions", "--no-sandbox", f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=place, close_fds=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in [theirs_in, theirs_out, *high]:
            os.close(fd)
        self.number, self.rest, self.events, self.session = 0, b"", [], None

    def read(self, until):
        """The next message, or None at `until`."""
        while b"\0" not in self.rest:
            if not select.select([self.inn], [], [], max(until - time.monotonic(), 0))[0]:
                return None
            piece = os.read(self.inn, 1 << 20)
            if not piece:
                sys.exit("shoot: the browser ended")
            self.rest += piece
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        order = {"id": self.number, "method": method, "params": params}
        if self.session:
            order["sessionId"] = self.session
        os.write(self.out, json.dumps(order).encode() + b"\0")
        until = time.monotonic() + 30
        while (message := self.read(until)) is not None:
            if message.get("id") == self.number:
                if "error" in message:
                    sys.exit(f"shoot: {method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)
        sys.exit(f"shoot: {method}: no answer")

    def stay(self, seconds):
        until = time.monotonic() + seconds
        while (message := self.read(until)) is not None:
            self.events.append(message)


def trouble(events):
    for e in events:
        params, method = e.get("params", {}), e.get("method")
        if method == "Runtime.exceptionThrown":
            detail = params["exceptionDetails"]
            yield detail.get("exception", {}).get("description") or detail["text"]
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            yield " ".join(str(a.get("value", a.get("description"))) for a in params["args"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            yield f"{params['entry']['text']} {params['entry'].get('url', '')}"


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("url")
    args.add_argument("png")
    args.add_argument("--size", default="1280x900", help="of the window, CSS pixels [1280x900]")
    args.add_argument("--dark", action="store_true", help="as with a dark desktop")
    args.add_argument("--full", action="store_true", help="the whole page, not only the window")
    args.add_argument("--expect", action="append", default=[], help="a text that must come; may be repeated")
    args.add_argument("--wait", type=float, default=3, help="seconds until the screenshot [3]")
    args.add_argument("--chromium", default=os.environ.get("CHROMIUM", "chromium"))
    args = args.parse_args()
    width, height = map(int, args.size.split("x"))

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(args.chromium, folder)
        try:
            tab = browser.call("Target.createTarget", url="about:blank")["targetId"]
            browser.session = browser.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
            for domain in ["Runtime", "Log", "Page"]:
                browser.call(f"{domain}.enable")
            browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                         deviceScaleFactor=1, mobile=width < 600)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if args.dark else "light"}
            browser.call("Emulation.setEmulatedMedia", features=[scheme])
            gone = browser.call("Page.navigate", url=args.url).get("errorText")
            if gone:
                sys.exit(f"shoot: {args.url}: {gone}")
            browser.stay(args.wait)
            found = browser.call("Runtime.evaluate", expression="document.body.innerText")["result"]["value"]
            shot = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=args.full)
            with open(args.png, "wb") as f:
                f.write(base64.b64decode(shot["data"]))
        finally:
            browser.process.kill()
            browser.process.wait()
    wrong = [f"the console says: {t}" for t in trouble(browser.events)]
    wrong += [f"the page does not say {t!r}" for t in args.expect if t not in found]
    for line in wrong:
        print(f"shoot: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
