"""How close the keyword annotators come to what the endpoint and the machine allow.

Usage: ``python perf/keywords.py [--items 10000] [--delay 0.05] [--concurrency 32] [--processes 2]
[--data PATH]``.
An endpoint in a process of its own answers every request after the delay; the annotator `openai`
asks it about movie posters, repeated with other titles, so that every item is a question of its
own. `metadata` runs on Amazon's Scientific items, repeated. Progress goes to stderr; the last line
is JSON: ``over_ideal`` (seconds of the run over items * delay / concurrency, with so many
``--processes`` that send, their start included; ``over_ideal_one_process`` with one, on a fifth of
the requests), ``over_client`` (seconds a request over those of a bare loop around the official
client's ``chat.completions.create``; ``one_over_client`` with one process, which is what a busy
machine leaves to judge), ``mean_in_flight`` and ``most_in_flight`` (requests at the endpoint, of
`concurrency`), ``cpu_ms`` (of the asking processes, a request, all of them), ``client_cpu_ms``
(of a bare loop that only sends, through the official client, as the annotator does) and
``create_cpu_ms`` (of that around `create`), ``endpoint_cpu_ms``, ``floor_over_ideal`` (the time
that the bare client and the endpoint alone keep all of the machine's cores busy, over the ideal),
``busy_elsewhere`` (cores that other programs took meanwhile), ``metadata_items_per_second``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from dataset_converters.movielens import convert_movielens
from dataset_converters.sequences import convert_sequences
from recbole_tpad.data import DatasetFolder, Item
from recbole_tpad.keywords.cache import AnswerCache
from recbole_tpad.keywords.dispatch import Patience
from recbole_tpad.keywords.endpoint import EndpointSettings
from recbole_tpad.keywords.metadata import MetadataAnnotator
from recbole_tpad.keywords.openai import OpenAIAnnotator
from recbole_tpad.keywords.prompt import KeywordPrompt

PARTS = 5
ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "seer",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": '{"keywords": ["red", "round", "shiny"]}'},
        }
    ],
    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
}


async def serve(delay: float) -> None:
    """Answer for ever; a line of figures on stdout after each line on stdin."""
    body = json.dumps(ANSWER).encode()
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    answer = f"{head}{len(body)}\r\n\r\n".encode() + body
    inside = most = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal inside, most
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = int(request.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(delay)
                inside -= 1
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=1 << 20, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(most, flush=True)


def ask(
    items: list[Item], folder: Path, delay: float, concurrency: int, processes: int
) -> dict[str, float]:
    """Ask about every item once; return the figures."""
    command = [sys.executable, __file__, "--serve", str(delay)]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        os.environ.setdefault("OPENAI_API_KEY", "any")
        with AnswerCache(folder / "keywords") as cache:
            several, one = (
                OpenAIAnnotator(
                    folder,
                    cache,
                    EndpointSettings("seer", base_url=url, processes=number),
                    patience=Patience(concurrency=concurrency),
                )
                for number in (processes, 1)
            )
            one.annotate(items[:concurrency])  # imports, dictionaries
            mine = items[concurrency:]
            count = len(mine)
            before, started = cpu_seconds(), time.perf_counter()
            served, busy = endpoint_seconds(server.pid), busy_seconds()
            outcome = several.annotate(mine)  # one run, its processes' start included
            seconds = time.perf_counter() - started
            used = cpu_seconds() - before
            served = endpoint_seconds(server.pid) - served
            busy = busy_seconds() - busy - used - served
            assert [answer.status for answer in outcome.answers] == ["ok"] * count
            bare = alone = sending = creating = 0.0
            for part in range(PARTS):  # in turns, since the machine's load changes
                some = mine[part :: PARTS * PARTS]
                wall, cpu = asyncio.run(bare_client(some, url, concurrency, typed=True))
                bare, creating = bare + wall / PARTS, creating + cpu / PARTS
                _, cpu = asyncio.run(bare_client(some, url, concurrency, typed=False))
                sending += cpu / PARTS
                fresh = [replace(item, title=f"{item.title} again") for item in some]
                started = time.perf_counter()
                one.annotate(fresh)
                alone += (time.perf_counter() - started) / len(fresh) / PARTS
        server.stdin.write("\n")
        server.stdin.flush()
        most = json.loads(server.stdout.readline())
    finally:
        server.kill()
        server.communicate()
    return {
        "over_ideal": seconds / (count * delay / concurrency),
        "over_ideal_one_process": alone / (delay / concurrency),
        "over_client": seconds / count / bare,
        "one_over_client": alone / bare,
        "mean_in_flight": count * delay / seconds,
        "most_in_flight": most,
        "cpu_ms": 1000 * used / count,
        "client_cpu_ms": 1000 * sending,
        "create_cpu_ms": 1000 * creating,
        "endpoint_cpu_ms": 1000 * served / count,
        "floor_over_ideal": (sending + served / count)
        / (os.cpu_count() or 1)
        / (delay / concurrency),
        "busy_elsewhere": busy / seconds,
    }


async def bare_client(
    items: list[Item], url: str, concurrency: int, *, typed: bool
) -> tuple[float, float]:
    """Seconds and CPU seconds a request of the official client; images are read before.

    `typed` is the call that its manual shows; else the annotator's: dictionaries, over aiohttp.
    """
    import openai

    prompt = KeywordPrompt()
    shown = {item.image: base64.b64encode(item.image.read_bytes()) for item in items if item.image}
    bodies = iter(
        {
            "model": "seer",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image_url",
                            "image_url": {
                                "url": f"data:image/jpeg;base64,{shown[item.image].decode()}"
                            },
                        },
                        {"type": "text", "text": prompt.text(item)},
                    ],
                }
            ],
            "temperature": 0,
            "max_tokens": 200,
        }
        for item in items
    )

    async def work(client: openai.AsyncOpenAI) -> None:
        for body in bodies:
            if typed:
                done = await client.chat.completions.create(**body)
                json.loads(done.choices[0].message.content)
            else:
                said = await client.post("/chat/completions", cast_to=object, body=body)
                json.loads(said["choices"][0]["message"]["content"])

    http = None if typed else openai.DefaultAioHttpClient()
    async with openai.AsyncOpenAI(api_key="any", base_url=url, http_client=http) as client:
        started, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work(client) for _ in range(concurrency)))
        wall, cpu = time.perf_counter() - started, time.process_time() - used
    return wall / len(items), cpu / len(items)


def endpoint_seconds(pid: int) -> float:
    """CPU time of the endpoint so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """CPU time of everything on this machine so far."""
    user, nice, system, _, _, irq, soft, *_ = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, soft))) / os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """CPU time of this process and of its ended ones so far."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def questions(folder: DatasetFolder, count: int) -> list[Item]:
    """So many different questions with real images."""
    shown = [item for item in folder.items if item.image is not None]
    return [
        replace(item, item_id=str(k), title=f"{item.title} {k}")
        for k, item in enumerate(itertools.islice(itertools.cycle(shown), count))
    ]


def metadata_speed(data: Path, scratch: Path) -> float:
    """Items a second of the annotator `metadata`, on 24 copies of the Scientific items."""
    source = data / "amazon2018_scientific"
    convert_sequences(
        "scientific", source / "Scientific.inter.json", source / "Scientific.item.json", scratch
    )
    items = DatasetFolder.open(scratch, "scientific").items
    MetadataAnnotator().annotate(items[:100])  # imports, dictionaries
    many = [item for _ in range(24) for item in items]
    started = time.perf_counter()
    MetadataAnnotator().annotate(many)
    return len(many) / (time.perf_counter() - started)


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--serve", type=float, metavar="DELAY", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        asyncio.run(serve(args.serve))
        return
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        speed = metadata_speed(args.data, scratch)
        print(f"metadata: {speed:,.0f} items a second", file=sys.stderr)
        convert_movielens("posters", args.data / "movie_posters", scratch)
        folder = DatasetFolder.open(scratch, "posters")
        items = questions(folder, args.items + args.concurrency)
        figures = ask(items, folder.path, args.delay, args.concurrency, args.processes)
    print(", ".join(f"{name} {value:.3f}" for name, value in figures.items()), file=sys.stderr)
    print(json.dumps({**figures, "metadata_items_per_second": speed}))


if __name__ == "__main__":
    main()
