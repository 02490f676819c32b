"""An endpoint on this machine that answers chat completions well and badly, and keeps count."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image
from tiny_catalogue import write_lines
from tiny_data import planted_sessions, write_data_set

from recbole_tpad.data import DatasetFolder

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
SHAPES = ("round", "square", "tall", "flat", "oval", "slim", "wide", "small")
TITLE = re.compile(r"^Product title: (.*)$", re.MULTILINE)


def keywords_of(number: int) -> list[str]:
    """What the endpoint sees in picture `number` (below 64)."""
    return [COLOURS[number % 8], SHAPES[number // 8], "ceramic"]


def picture(number: int, size: int = 24) -> bytes:
    """A PNG that shows a number."""
    out = io.BytesIO()
    Image.new("RGB", (size, size), (number % 256, number // 256, 90)).save(out, "PNG")
    return out.getvalue()


def write_shop(data_path: Path, n_items: int = 12, name: str = "shop") -> DatasetFolder:
    """A data set whose item k shows picture k; without keywords."""
    folder = write_data_set(data_path, name, *planted_sessions(n_items, n_sessions=60))
    (folder / "dataset.json").write_text(json.dumps({"format": 1, "name": name}))
    (folder / "images").mkdir()
    items, images = [], []
    for k in range(n_items):
        item_id = f"i{k:02d}"
        empty = {"brand": "", "category": "", "category_path": [], "description": ""}
        more = {"features": [], "price": None, "image_urls": []}
        items.append({"item_id": item_id, "title": f"thing {k}", **empty, **more})
        (folder / "images" / f"{item_id}.png").write_bytes(picture(k))
        file = f"images/{item_id}.png"
        images.append({"item_id": item_id, "file": file, "sha256": "0" * 64, "status": "ok"})
    write_lines(folder / "items.jsonl", items)
    write_lines(folder / "images.jsonl", images)
    return DatasetFolder.open(data_path, name)


def reread(folder: DatasetFolder) -> DatasetFolder:
    """The folder as it is on disk now."""
    return DatasetFolder.open(folder.path.parent, folder.name)


@dataclass
class Seen:
    """One request: the title in its text, the number its picture shows, and all of it."""

    title: str
    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    moment: float


@dataclass
class ChatServer:
    """Attributes:
    script: title → what to do at the first, second, … request for it; then "good".
    default: what to do without a script.
    seen: every request. answered: titles whose good answer was sent completely.
    key: the only key that is accepted; empty accepts any.
    """

    script: dict[str, list[str]] = field(default_factory=dict)
    default: str = "good"
    slow: float = 0.0
    key: str = ""
    models: tuple[str, ...] = ("seer-large", "seer-small")
    seen: list[Seen] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    most_at_a_time: int = 0
    url: str = ""
    _running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def asked(self) -> Counter[str]:
        """Requests by title."""
        return Counter(seen.title for seen in self.seen)

    def enter(self, seen: Seen) -> str:
        with self._lock:
            self.seen.append(seen)
            self._running += 1
            self.most_at_a_time = max(self.most_at_a_time, self._running)
            steps = self.script.get(seen.title, [])
            return steps.pop(0) if steps else self.default

    def leave(self) -> None:
        with self._lock:
            self._running -= 1


def completion(content: Any, **more: Any) -> dict[str, Any]:
    """A chat completion's JSON."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    made = {"id": "c", "object": "chat.completion", "created": 1, "model": "seer-large"}
    return {**made, "choices": [choice], "usage": usage, **more}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ChatServer

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def send(self, status: int, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def error(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        self.send(status, {"error": {"message": message, "code": code, "type": "x"}}, **headers)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            data = [{"id": name, "object": "model"} for name in self.state.models]
            self.send(200, {"object": "list", "data": data})
        else:
            self.error(404, "no such page")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, text = body["messages"][0]["content"]
        data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as shown:
            red, green, _ = shown.convert("RGB").getpixel((0, 0))
        found = TITLE.search(text["text"])
        title = found.group(1) if found else ""
        headers = {k.lower(): v for k, v in self.headers.items()}
        seen = Seen(title, red + 256 * green, body, headers, time.monotonic())
        what = self.state.enter(seen)
        left = False
        try:
            time.sleep(self.state.slow)
            self.state.leave()  # before the answer: after it, the next request may be there
            left = True
            if self.state.key and headers.get("authorization") != f"Bearer {self.state.key}":
                # Some endpoints quote the key.
                return self.error(401, f"Incorrect API key: {headers.get('authorization')}")
            if body["model"] not in self.state.models:
                return self.error(404, f"The model `{body['model']}` does not exist")
            name, _, argument = what.partition(" ")
            getattr(self, f"do_{name.replace('-', '_')}")(seen, argument)
        except OSError:
            self.close_connection = True  # the client left
        finally:
            if not left:
                self.state.leave()

    def say(self, text: Any, **more: Any) -> None:
        self.send(200, completion(text, **more))

    def do_good(self, seen: Seen, _: str) -> None:
        self.say(json.dumps({"keywords": keywords_of(seen.number)}))
        self.state.answered.append(seen.title)

    def do_late(self, seen: Seen, seconds: str) -> None:
        self.state.ended.wait(float(seconds))
        self.do_good(seen, "")

    def do_busy(self, _: Seen, seconds: str) -> None:
        self.error(429, "slow down", **({"Retry_After": seconds} if seconds else {}))

    def do_no_quota(self, _: Seen, __: str) -> None:
        self.error(429, "You exceeded your current quota", code="insufficient_quota")

    def do_status(self, _: Seen, status: str) -> None:
        self.error(int(status), "something is wrong")

    def do_no_images(self, _: Seen, __: str) -> None:
        self.error(400, "seer-large does not support image input")

    def do_half(self, seen: Seen, _: str) -> None:
        self.say(json.dumps({"keywords": keywords_of(seen.number)})[:18])

    def do_half_later(self, seen: Seen, _: str) -> None:
        self.say(json.dumps({"keywords": [*keywords_of(seen.number), "glossy"]})[:-5])

    def do_half_body(self, seen: Seen, _: str) -> None:
        """Less than announced, then the connection ends."""
        body = json.dumps(completion("{}")).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def do_prose(self, seen: Seen, _: str) -> None:
        inner = json.dumps({"keywords": keywords_of(seen.number)})
        self.say(f"Sure [of course]! Here they are:\n```json\n{inner}\n```\nAnything else?")

    def do_chinese(self, _: Seen, __: str) -> None:
        self.say('{"keywords": ["红色", "圆形", "陶瓷"]}')

    def do_german(self, _: Seen, __: str) -> None:
        self.say('{"keywords": ["blau", "gestreift", "Baumwolle"]}')

    def do_empty(self, _: Seen, __: str) -> None:
        self.say('{"keywords": []}')

    def do_nothing(self, _: Seen, __: str) -> None:
        self.say(None)

    def do_drop(self, _: Seen, __: str) -> None:
        self.connection.close()
        self.close_connection = True

    def do_stall(self, _: Seen, __: str) -> None:
        self.state.ended.wait(30)

    def do_html(self, _: Seen, __: str) -> None:
        self.send(200, b"<html>Welcome</html>", Content_Type="text/html")

    def do_no_choice(self, _: Seen, __: str) -> None:
        self.say("x", choices=[])

    def do_no_usage(self, seen: Seen, _: str) -> None:
        self.say(json.dumps({"keywords": keywords_of(seen.number)}), usage=None)

    def do_plain_only(self, seen: Seen, _: str) -> None:
        """An old endpoint that knows none of the parameters."""
        for name in ("response_format", "temperature"):
            if name in seen.body:
                return self.error(400, f"Unsupported parameter: '{name}'")
        if "max_tokens" in seen.body:
            return self.error(400, "Use 'max_completion_tokens' instead of 'max_tokens'")
        return self.do_good(seen, "")

    def do_bill(self, seen: Seen, tokens: str) -> None:
        usage = {"prompt_tokens": int(tokens), "completion_tokens": 20}
        self.say(json.dumps({"keywords": keywords_of(seen.number)}), usage=usage)


@contextmanager
def chatting() -> Iterator[ChatServer]:
    """Run an endpoint for the time of the block."""
    state = ChatServer()
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.request_queue_size = 64
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
