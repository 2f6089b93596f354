"""256 clients at once, each with a stream, one after the other for SHOAL_SOAK_SECONDS (20; the full run is 600): nothing is
lost, everyone gets the text that one gets alone, and the server's memory and descriptors stay as they are."""

import asyncio
import json
import os
import time
from pathlib import Path

import pytest
from conftest import DEMO_MODEL, needs_demo_model
from serving import serve

SECONDS = float(os.environ.get("SHOAL_SOAK_SECONDS", 20))
CLIENTS = 256


def bodies(server):
    """Sixteen questions, as requests."""
    puzzles = (DEMO_MODEL / "puzzles.jsonl").read_text().splitlines()
    questions = [json.loads(line)["prompt"] for line in puzzles[::len(puzzles) // 16][:16]]
    return [json.dumps({"model": server.model, "stream": True, "temperature": 0, "max_tokens": 48 + 8 * i,
                        "messages": [{"role": "user", "content": question}]}).encode()
            for i, question in enumerate(questions)]


async def ask(address, body):
    """The text of a streamed answer, thinking and all, with its finish reason. Raises when the stream is not whole."""
    reader, writer = await asyncio.open_connection(*address, limit=1 << 20)
    try:
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     b"Content-Length: %d\r\n\r\n" % len(body) + body)
        text, done = "", False
        status = await reader.readline()
        assert status.startswith(b"HTTP/1.1 200"), status
        async for line in reader:
            if line.startswith(b"data: {"):
                choice, = json.loads(line[6:])["choices"]
                delta = choice["delta"]
                text += delta.get("reasoning_content") or delta.get("content") or ""
                if choice["finish_reason"]:
                    text += f" [{choice['finish_reason']}]"
            elif line.startswith(b"data: [DONE]"):
                done = True
        assert done and text, text
        return text
    finally:
        writer.close()


async def soak(address, requests, wanted, seconds, on_quarter):
    """(answers, what went wrong)."""
    deadline, count, wrong = time.monotonic() + seconds, 0, []

    async def client(i):
        nonlocal count
        while time.monotonic() < deadline and len(wrong) < 10:
            i = (i + 5) % len(requests)
            try:
                text = await ask(address, requests[i])
            except (AssertionError, OSError, ValueError, asyncio.IncompleteReadError) as error:
                wrong.append(f"request {i}: {error!r}")
                continue
            count += 1
            if text != wanted[i]:
                wrong.append(f"request {i}: {text!r} instead of {wanted[i]!r}")
    clients = [asyncio.create_task(client(i)) for i in range(CLIENTS)]
    for _ in range(4):
        await asyncio.sleep(seconds / 4)
        on_quarter()
    await asyncio.gather(*clients)
    return count, wrong


class Processes:
    """The ranks of a server, as the kernel sees them."""

    def __init__(self, server):
        self.pids = server.rank_pids()

    def rss_mb(self):
        return sum(int(line.split()[1]) / 1024 for pid in self.pids
                   for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))

    def descriptors(self):
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)


def test_soak():
    needs_demo_model()
    # A KV cache that is too small for all of them: it is soon full, from when on memory has no reason to grow, and some
    # have to leave and come back, which nobody must see in their texts.
    with serve(DEMO_MODEL, 2, "--kv-cache-gb", "0.08", "--no-access-log") as server:
        host, port = server.url.removeprefix("http://").split(":")
        requests = bodies(server)
        wanted = [asyncio.run(ask((host, int(port)), body)) for body in requests]
        processes = Processes(server)
        time.sleep(1)  # until the last connection is gone on the server's side too
        descriptors, rss = processes.descriptors(), []
        begin = time.monotonic()
        count, wrong = asyncio.run(soak((host, int(port)), requests, wanted, SECONDS,
                                        lambda: rss.append(round(processes.rss_mb(), 1))))
        seconds = time.monotonic() - begin
        left = server.metrics()
        print(f"{count} answers in {seconds:.0f} s, {left['num_preemptions_total']:.0f} times one had to leave; RSS at every "
              f"quarter {rss} MB")
        assert not wrong, "\n".join(wrong)
        assert count >= CLIENTS
        deadline = time.monotonic() + 10
        while processes.descriptors() > descriptors and time.monotonic() < deadline:
            time.sleep(0.1)
        assert processes.descriptors() <= descriptors
        assert rss[3] < rss[1] * 1.02 + 8, rss
        assert left["num_requests_running"] == left["num_requests_waiting"] == 0 == left["kv_cache_usage_perc"]
