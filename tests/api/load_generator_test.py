"""GuideLLM, a public load generator, against the server; and `shoal bench --url` against it too, whose counts must be
those of the server's own metrics."""

import csv
import io
import json
import os
import shutil
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import DEMO_MODEL
from serving import BINARY, ROOT

GUIDELLM = shutil.which("guidellm") or ROOT / ".venv-guidellm/bin/guidellm"


def bench(server, *options):
    return subprocess.run([BINARY, "bench", "--url", server.url, "--concurrency", "1,3", "--prompt-tokens", "40",
                           "--output-tokens", "12", "--requests-per-user", "2", *options],
                          capture_output=True, text=True, timeout=300)


def test_bench_url_counts_as_the_server_does(server):
    before = server.metrics()
    done = bench(server, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = report["results"]
    assert report["model"] == server.model and [row["concurrency"] for row in rows] == [1, 3]
    assert [row["requests"] for row in rows] == [2, 6] and not any(row["failed"] for row in rows)
    assert all(row["output_tokens"] == 12 and 20 < row["prompt_tokens"] < 60 for row in rows)
    # One request more was a trial.
    after = server.metrics()
    assert after["generation_tokens_total"] - before["generation_tokens_total"] == 9 * 12
    assert after["request_prompt_tokens_count"] - before["request_prompt_tokens_count"] == 9
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(row["requests"] * 12 / row["seconds"])
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p99_ms"] < row["seconds"] * 1e3
        assert 0 < row["tpot_p50_ms"] <= row["tpot_p99_ms"]
        assert row["tokens_per_s_per_user"] <= 1e3 / row["tpot_p50_ms"] * 2


def test_bench_url_as_table_and_csv(server):
    table = bench(server).stdout.splitlines()
    assert [line.split()[:3] for line in table[2:]] == [["1", "2", "0"], ["3", "6", "0"]]
    rows = list(csv.DictReader(io.StringIO(bench(server, "--csv").stdout)))
    assert [(row["concurrency"], row["failed"]) for row in rows] == [("1", "0"), ("3", "0")]


@pytest.mark.parametrize("url, says", [("http://127.0.0.1:1", "cannot be reached"), ("ftp://x", "http://"),
                                       ("http://nowhere.invalid:80", "is not known"), ("http://x:99999", "99999"),
                                       ("http://x:80a", "80a"), ("http://x:0", "no port")])
def test_bench_url_says_what_is_wrong(server, url, says):
    done = subprocess.run([BINARY, "bench", "--url", url], capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if says in ("cannot be reached", "is not known") else 2) and says in done.stderr


def test_bench_url_says_that_it_waits():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [BINARY, "bench", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--model", "m"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as waiting:
            threading.Timer(60, waiting.kill).start()
            try:
                assert "still waiting" in waiting.stderr.readline()
            finally:
                waiting.kill()


def test_bench_url_reports_failed_requests(server):
    done = bench(server, "--model", "no-such-model")
    assert done.returncode == 1 and "no-such-model" in done.stderr


def test_bench_url_goes_on_after_an_empty_answer():
    """A server that knows no ignore_eos may give one. Here the trial's is, and the second of the row."""
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(body)
            text = "" if len(asked) in (1, 3) else "words"
            stream = f'data: {{"choices": [{{"text": "{text}"}}]}}\n\ndata: [DONE]\n\n'.encode()
            self.send_response(200)
            self.send_header("content-length", str(len(stream)))
            self.end_headers()
            self.wfile.write(stream)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = subprocess.run([BINARY, "bench", "--url", url, "--model", "m", "--concurrency", "1", "--requests-per-user", "2",
                               "--json"], capture_output=True, text=True, timeout=60)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    row, = json.loads(done.stdout)["results"]
    assert len(asked) == 3 and (row["requests"], row["failed"], row["output_tokens"]) == (2, 0, 0.5)


def test_guidellm(server, tmp_path):
    if not os.access(GUIDELLM, os.X_OK):
        pytest.skip("guidellm is not installed: tests/venv --all")
    out = tmp_path / "report.json"
    done = subprocess.run([GUIDELLM, "benchmark", "--target", server.url, "--model", server.model, "--processor",
                           str(DEMO_MODEL), "--rate-type", "concurrent", "--rate", "4", "--max-requests", "20", "--data",
                           "prompt_tokens=64,output_tokens=16", "--output-path", str(out)],
                          capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    benchmark, = json.loads(out.read_text())["benchmarks"]
    assert len(benchmark["requests"]["successful"]) == 20 and not benchmark["requests"]["errored"]
    assert all(request["output_tokens"] == 16 for request in benchmark["requests"]["successful"])
