"""What the two Python agents have in common: marks, options, the door in front of the SDK, serving.

Nothing here speaks A2A: that is the SDK's, which is what is tested against.
"""

import argparse
import json
import re
import socket

import uvicorn

MARK = re.compile(r"\[\[(\w+)(?:=([\w.]+))?\]\]")

# What the states that are no success say.
WORDS = {
    "failed": "The cluster could not be reached.",
    "ask": "Which namespace do you mean?",
    "auth": "Sign in to the cluster first.",
    "reject": "This is no question about a cluster.",
    "cancel": "Stopped by its owner.",
}

# As Google's ADK writes it into the metadata of what it publishes.
USAGE = {
    "adk_usage_metadata": {
        "promptTokenCount": 1200,
        "candidatesTokenCount": 34,
        "totalTokenCount": 1234,
    }
}


class Marks:
    """How a prompt wants to be answered: its `[[mark]]`s and `[[mark=value]]`s."""

    def __init__(self, prompt):
        self.marks = {name: value or "" for name, value in MARK.findall(prompt)}
        lines = [line.strip() for line in MARK.sub("", prompt).splitlines()]
        first = next((line for line in lines if line), "")
        self.answer = f"Investigated: {first}"

    def __contains__(self, name):
        return name in self.marks

    @property
    def delay(self):
        return float(self.marks.get("delay") or 0)

    @property
    def words(self):
        """What to say with a state that is no success, if one is wanted."""
        return next((WORDS[name] for name in WORDS if name in self), None)

    def usage(self, place):
        """The token usage, if it is wanted in this place: task (the default), artifact or message."""
        wanted = self.marks.get("usage")
        return dict(USAGE) if wanted is not None and (wanted or "task") == place else None

    def chunks(self):
        """The answer in three pieces, or in one."""
        if "chunks" not in self:
            return [self.answer]
        third = len(self.answer) // 3 + 1
        return [self.answer[at : at + third] for at in range(0, len(self.answer), third)]


class Runs:
    """The runs of the executor, in order, each with how it ended."""

    def __init__(self):
        self.list = []

    def begin(self, message_id, context_id, task_id):
        run = {"messageId": message_id, "contextId": context_id, "taskId": task_id, "end": None}
        self.list.append(run)
        return run


class Door:
    """Stands before the SDK's application: notes every POST, asks for credentials, tells what it noted."""

    def __init__(self, app, options, runs):
        self.app, self.options, self.runs = app, options, runs
        self.seen = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] == "/seen":
            return await answer(send, 200, self.seen)
        if scope["path"] == "/runs":
            return await answer(send, 200, self.runs.list)
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)
        body, more = b"", True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            parsed = json.loads(body)
        except ValueError:
            parsed = None
        noted = {"path": scope["path"], "headers": headers, "body": parsed, "status": None}
        self.seen.append(noted)

        async def send_noted(event):
            if event["type"] == "http.response.start":
                noted["status"] = event["status"]
            await send(event)

        if not self.may_pass(headers):
            challenge = [(b"www-authenticate", b"Bearer")]
            return await answer(send_noted, 401, {"detail": "Not authenticated"}, challenge)
        read = False

        async def receive_again():
            nonlocal read
            if not read:
                read = True
                return {"type": "http.request", "body": body, "more_body": False}
            # The SDK waits here for the client to go away.
            return await receive()

        await self.app(scope, receive_again, send_noted)

    def may_pass(self, headers):
        token, header = self.options.token, self.options.header
        if token is not None and headers.get("authorization") != f"Bearer {token}":
            return False
        if header is not None:
            name, _, value = header.partition("=")
            return headers.get(name.lower()) == value
        return True


async def answer(send, status, value, headers=()):
    content = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class Server(uvicorn.Server):
    """Says where it listens once it does."""

    def __init__(self, config, url):
        super().__init__(config)
        self.url = url

    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(f"listening on {self.url}", flush=True)


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0, help="0 chooses one")
    parser.add_argument("--token", help="ask for this bearer token")
    parser.add_argument("--header", metavar="NAME=VALUE", help="ask for this header")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="serve https")
    parser.add_argument("--no-streaming", action="store_true", help="say so in the card")
    parser.add_argument("--compat", action="store_true", help="answer the older dialect too, if the SDK can")
    return parser.parse_args()


def serve(options, make):
    """Serves what `make` makes, which is told the URL that is served at."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", options.port))
    scheme = "https" if options.tls else "http"
    url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    tls = dict(zip(("ssl_certfile", "ssl_keyfile"), options.tls or ()))
    runs = Runs()
    door = Door(make(url, runs), options, runs)
    config = uvicorn.Config(door, log_level="warning", **tls)
    Server(config, url).run(sockets=[listener])
