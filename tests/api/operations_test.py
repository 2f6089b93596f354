"""What operators rely on: readiness, metrics that Prometheus takes, request ids, keys, TLS, CORS, an orderly end."""

import concurrent.futures
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
from conftest import DEMO_MODEL, needs_demo_model
from serving import BINARY, MPI_ENVIRONMENT, ROOT, free_port

CHAT = {"messages": [{"role": "user", "content": "What is 47 + 38?"}], "max_tokens": 16, "temperature": 0}


def request(url, path, body=None, headers=None, context=None, method=None):
    """(status, headers, body) of one request."""
    data = None if body is None else json.dumps(body).encode()
    wanted = urllib.request.Request(url + path, data, {"Content-Type": "application/json", **(headers or {})}, method=method)
    try:
        with urllib.request.urlopen(wanted, timeout=60, context=context) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def metrics(url):
    """Name, with labels as they are written → value."""
    lines = request(url, "/metrics")[2].decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def total(values, name):
    return sum(value for key, value in values.items() if key.split("{")[0] == name)


def test_request_ids(server):
    status, headers, _ = request(server.url, "/health")
    assert status == 200 and re.fullmatch(r"req-[0-9a-f]{16}", headers["X-Request-Id"])
    assert request(server.url, "/none", headers={"X-Request-Id": "mine-1.2"})[1]["X-Request-Id"] == "mine-1.2"
    assert request(server.url, "/none", headers={"X-Request-Id": "a b"})[1]["X-Request-Id"] != "a b"


def test_metrics_count_what_happened(server):
    before = metrics(server.url)
    answers = 3
    usage = [json.loads(request(server.url, "/v1/chat/completions", {"model": server.model, **CHAT})[2])["usage"]
             for _ in range(answers)]
    after = metrics(server.url)

    def grew(name):
        return total(after, "shoal:" + name) - total(before, "shoal:" + name)
    generated = sum(one["completion_tokens"] for one in usage)
    # What the prefix cache had was not computed.
    assert grew("prompt_tokens_total") + grew("prefix_cache_hits_total") == sum(one["prompt_tokens"] for one in usage)
    assert grew("generation_tokens_total") == generated == grew("request_generation_tokens_sum")
    assert grew("request_success_total") == answers == grew("time_to_first_token_seconds_count")
    assert grew("inter_token_latency_seconds_count") == generated - answers
    assert grew("e2e_request_latency_seconds_sum") >= grew("time_to_first_token_seconds_sum") > 0
    assert grew("request_queue_time_seconds_count") == grew("request_prefill_time_seconds_count") == answers
    parts = sum(grew(f"request_{part}_time_seconds_sum") for part in ("queue", "prefill", "decode"))
    assert 0 < grew("request_queue_time_seconds_sum") < parts <= grew("e2e_request_latency_seconds_sum")
    # Every computed token goes to two experts in each of the three layers that have them.
    assert grew("rank_expert_tokens_total") >= 6 * generated
    assert total(after, "shoal:num_requests_running") == total(after, "shoal:kv_cache_usage_perc") == 0
    assert total(after, "shoal:ranks") == 2


def test_status(server):
    status = json.loads(request(server.url, "/status.json")[2])
    assert len(status["ranks"]) == 2 and len(status["expert_tokens"]) >= 3 and len(status["expert_tokens"][0]) == 8
    assert sum(map(sum, status["expert_tokens"])) == sum(rank["expert_tokens"] for rank in status["ranks"])
    assert status["kv_pages"]["all"] > 0 and status["queue"]["running"] == 0


def test_prometheus_takes_the_metrics(server, tmp_path):
    if not shutil.which("promtool") or not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed")
    text = request(server.url, "/metrics")[2]
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    complaints = [line for line in (checked.stdout + checked.stderr).decode().splitlines() if line]
    # vLLM's way of naming has a colon, which promtool would rather see in rules only.
    assert all("should not contain ':'" in line for line in complaints), complaints
    port = free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(json.dumps({"scrape_configs": [{
        "job_name": "shoal", "scrape_interval": "1s", "static_configs": [{"targets": [server.url.split("/")[-1]]}]}]}))
    process = subprocess.Popen(["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data",
                                f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                _, _, body = request(f"http://127.0.0.1:{port}", "/api/v1/query?query=shoal:ranks")
                found = json.loads(body)["data"]["result"]
            except (OSError, KeyError):
                continue
            if found:
                assert found[0]["value"][1] == "2" and found[0]["metric"]["model_name"] == "demo-model"
                return
        pytest.fail("Prometheus has not scraped the server")
    finally:
        process.terminate()
        process.wait(20)


def test_keys_and_cors():
    needs_demo_model()
    with serve_with("--api-key", "first", "--api-key", "second", "--cors-origin", "http://app.example") as server:
        url = server.url
        for path in ("/v1/models", "/metrics", "/status.json", "/api/tags", "/tokenize"):
            status, headers, body = request(url, path)
            assert status == 401 and headers["WWW-Authenticate"] == "Bearer", path
            assert request(url, path, headers={"Authorization": "Bearer secon"})[0] == 401
        for key in ("first", "second"):
            assert request(url, "/v1/models", headers={"Authorization": "Bearer " + key})[0] == 200
        for path in ("/", "/status", "/health", "/version"):
            assert request(url, path)[0] == 200, path
        origin = {"Origin": "http://app.example"}
        preflight = request(url, "/v1/models", headers={**origin, "Access-Control-Request-Method": "POST"}, method="OPTIONS")
        assert preflight[0] == 204 and "Authorization" in preflight[1]["Access-Control-Allow-Headers"]
        wanted = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
        assert "x-stainless-os" in request(url, "/v1/models", headers=wanted, method="OPTIONS")[1]["Access-Control-Allow-Headers"]
        assert request(url, "/health", headers=origin)[1]["Access-Control-Allow-Origin"] == "http://app.example"
        assert "X-Request-Id" in request(url, "/health", headers=origin)[1]["Access-Control-Expose-Headers"]
        assert request(url, "/health", headers={"Origin": "http://evil.example"})[1]["Access-Control-Allow-Origin"] is None


def test_nobody_waits_for_the_body_of_a_stranger():
    needs_demo_model()
    with serve_with("--api-key", "first") as server:
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), 20) as stranger:
            stranger.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n")
            assert b" 401 " in stranger.recv(1000)


def test_a_request_may_not_ask_for_more_answers_than_could_wait(server):
    body = {"model": server.model, "prompt": [[5, 6]] * 17, "n": 128, "max_tokens": 1}
    status, _, text = request(server.url, "/v1/completions", body)
    assert status == 400 and json.loads(text)["error"]["param"] == "n" and b"2176" in text
    assert request(server.url, "/v1/completions", {**body, "prompt": [[5, 6]] * 2})[0] == 200


def test_a_model_that_overflows_fails_requests_and_not_the_server(tmp_path):
    needs_demo_model()
    for file in DEMO_MODEL.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).symlink_to(file)
    weights = bytearray((DEMO_MODEL / "model.safetensors").read_bytes())
    header = int.from_bytes(weights[:8], "little")
    first, last = json.loads(weights[8:8 + header])["model.norm.weight"]["data_offsets"]
    weights[8 + header + first:8 + header + last] = b"\xc0\x7f" * ((last - first) // 2)  # BF16's NaN
    (tmp_path / "model.safetensors").write_bytes(weights)
    with serve_with("--speculative", "mtp", model=tmp_path) as server:
        for more in ({}, {"stream": True}, {"prompt": [5, 6, 7], "echo": True, "logprobs": 1, "max_tokens": 0}):
            status, _, text = request(server.url, "/v1/completions", {"model": "default", "prompt": "2, 4,", **more})
            assert status == (200 if "stream" in more else 500) and b"overflowed" in text, text
        assert request(server.url, "/health")[0] == 200


@pytest.mark.parametrize("grace", ["60", "0"])
def test_a_job_of_mpirun_ends_in_order(grace):
    needs_demo_model()
    launcher = [ROOT / "launch" / "orderly", "-n", "2"]
    with serve_with("--grace", grace, launcher=launcher) as server:
        connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rsplit(":", 1)[1]), timeout=120)
        body = {"model": "default", "prompt": "2, 4,", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        server.process.terminate()
        last = [line for line in response.read().decode().split("\n\n") if line][-1]
        assert last == "data: [DONE]" if grace == "60" else "the server is shutting down" in last
        assert server.process.wait(60) == 0, server.text()  # without a second signal


def test_an_empty_key_is_refused_at_once():
    needs_demo_model()
    refused = subprocess.run([BINARY, "serve", "--model", DEMO_MODEL, "--api-key", ""], capture_output=True, text=True, timeout=30)
    assert refused.returncode == 2 and "--api-key: must not be empty" in refused.stderr


class serve_with:
    """A server on one rank with further options: its `url`, its `process`. It need not be ready yet, and must end well."""

    def __init__(self, *options, ready=True, model=DEMO_MODEL, launcher=()):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([*launcher, BINARY, "serve", "--model", model, "--port", "0", *options],
                                        stdout=self.log, stderr=self.log, env={**os.environ, **MPI_ENVIRONMENT})
        try:
            self.url = self.wait_for(r'loading.*address\W+(https?://[^\s"]+)')[1]  # it listens, and says that it is loading
            if ready:
                self.wait_for("listening on")
        except BaseException:
            self.process.kill()
            raise

    def wait_for(self, pattern):
        deadline = time.monotonic() + 120
        while not (found := re.search(pattern, self.text())):
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.05)
        return found

    def text(self):
        self.log.seek(0)
        return self.log.read()

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        self.process.terminate()
        try:
            status = self.process.wait(30)
            assert failure or status == 0, self.text()
        finally:
            self.process.kill()


def test_tls():
    needs_demo_model()
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days",
                        "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True,
                       capture_output=True)
        context = ssl.create_default_context(cafile=str(cert))
        with serve_with("--tls-cert", str(cert), "--tls-key", str(key)) as server:
            url = server.url
            assert request(url, "/health", context=context)[0] == 200
            port = int(url.rsplit(":", 1)[1])
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
            for _ in range(3):  # one connection, several requests, streams among them
                connection.request("POST", "/v1/chat/completions", json.dumps({"model": "default", "stream": True, **CHAT}),
                                   {"Content-Type": "application/json"})
                text = connection.getresponse().read().decode()
                assert text.rstrip().endswith("data: [DONE]")
            with socket.create_connection(("127.0.0.1", port)) as plain:  # not TLS at all
                plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                plain.settimeout(20)
                assert b"HTTP/1.1 200" not in plain.recv(1000)
            assert request(url, "/health", context=context)[0] == 200


def test_429_when_too_many_wait():
    """One runs, one waits, the third is told to come back; a client that does so is served."""
    needs_demo_model()
    with serve_with("--max-num-seqs", "1", "--max-waiting", "1") as server, \
            concurrent.futures.ThreadPoolExecutor() as pool:
        url = server.url
        body = {"model": "default", **CHAT, "max_tokens": 800, "ignore_eos": True}
        before = metrics(url)
        busy = []
        for family in ("shoal:num_requests_running", "shoal:num_requests_waiting"):
            busy.append(pool.submit(request, url, "/v1/chat/completions", body))
            while not total(metrics(url), family):
                assert not busy[0].done()
        for stream in (False, True):
            status, headers, text = request(url, "/v1/chat/completions", {**body, "stream": stream})
            error = json.loads(text)["error"]
            assert status == 429 and error["code"] == "rate_limit_exceeded" and "waiting" in error["message"]
            assert int(headers["Retry-After"]) >= 1
        assert request(url, "/health")[0] == 200 and request(url, "/tokenize", {"prompt": "x"})[0] == 200
        patient = openai.OpenAI(base_url=url + "/v1", api_key="any", max_retries=100)
        assert patient.chat.completions.create(model="default", **CHAT).usage.completion_tokens > 0
        assert [one.result(120)[0] for one in busy] == [200, 200]
        waited = metrics(url)["shoal:request_queue_time_seconds_sum{model_name=\"demo-model\"}"]
        assert waited > total(before, "shoal:request_queue_time_seconds_sum") + 0.05


def test_errors_of_a_chat_template_do_not_tell_where_it_is(tmp_path):
    needs_demo_model()
    for file in DEMO_MODEL.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "chat_template.jinja").write_text("\n{{ messages[0].content.nothing.more }}")
    with serve_with("--model-name", "mine", model=tmp_path) as server:
        for path in ("/v1/chat/completions", "/api/chat"):
            status, _, body = request(server.url, path, {"model": "mine", "messages": CHAT["messages"]})
            assert status == 400 and b"line 2: " in body, body
            assert str(tmp_path).encode() not in body and b"chat_template.jinja" not in body


def test_503_while_loading_then_ready_then_drained():
    needs_demo_model()
    with serve_with("--log-json", ready=False) as server:
        url, seen, deadline = server.url, set(), time.monotonic() + 120
        while 200 not in seen and time.monotonic() < deadline:
            status, headers, _ = request(url, "/health")
            early = request(url, "/v1/models")[0] if status == 503 else 200
            seen.add(status)
            assert status == 200 or (status == 503 and headers["Retry-After"])
            assert early in (200, 503)
        assert 200 in seen
        with concurrent.futures.ThreadPoolExecutor() as pool:
            body = {"model": "default", **CHAT, "max_tokens": 150, "ignore_eos": True}
            running = pool.submit(request, url, "/v1/chat/completions", body, {"X-Request-Id": "the-last-one"})
            while not total(metrics(url), "shoal:num_requests_running"):
                assert not running.done()
            server.process.terminate()
            status, _, body = running.result(60)
        assert status == 200 and json.loads(body)["usage"]["completion_tokens"] == 150
        assert server.process.wait(30) == 0
        lines = [json.loads(line) for line in server.text().splitlines() if line.startswith("{")]
        logged, = (line for line in lines if line.get("id") == "the-last-one")
        assert logged["status"] == 200 and logged["path"] == "/v1/chat/completions" and logged["level"] == "info"
        assert lines[-1]["event"] == "ending" and lines[-1]["drained"] is True
