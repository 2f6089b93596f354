"""Open WebUI itself before Shoal. It is 6 GB of packages, so it is run where SHOAL_OPEN_WEBUI names its program:

    python3 -m venv owui && owui/bin/pip install open-webui
    SHOAL_OPEN_WEBUI=$PWD/owui/bin/open-webui tests/run --no-install -R open_webui
"""

import contextlib
import json
import os
import subprocess
import time

import pytest
import requests
from serving import BINARY, ROOT, free_port, serve

PROGRAM = os.environ.get("SHOAL_OPEN_WEBUI")
pytestmark = [pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built"),
              pytest.mark.skipif(not PROGRAM, reason="Open WebUI (6 GB): SHOAL_OPEN_WEBUI does not name it")]

QUESTION = [{"role": "user", "content": "What is 47 + 38?"}]


@contextlib.contextmanager
def open_webui(upstream, folder):
    """Its address and a session's headers; without accounts, and without asking the internet for anything."""
    port = free_port()
    environment = {**os.environ, "OFFLINE_MODE": "true", "HF_HUB_OFFLINE": "1", "RAG_EMBEDDING_ENGINE": "openai",
                   "WEBUI_AUTH": "False", "WEBUI_SECRET_KEY": "any", "DATA_DIR": str(folder), "ENABLE_OLLAMA_API": "False",
                   "OPENAI_API_BASE_URL": upstream + "/v1", "OPENAI_API_KEY": "any"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", "--host", "127.0.0.1", "--port", str(port)], env=environment,
                                   stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            with contextlib.suppress(requests.ConnectionError):
                token = requests.post(url + "/api/v1/auths/signin", json={"email": "", "password": ""}).json()["token"]
                break
            time.sleep(1)
        yield url, {"Authorization": f"Bearer {token}"}
    finally:
        process.terminate()
        process.wait(30)


def test_chat_and_what_it_asks_beside_it(tmp_path):
    with serve(ROOT / "launch" / "demo-model", 2) as server, open_webui(server.url, tmp_path) as (url, headers):
        models = requests.get(url + "/api/models", headers=headers).json()["data"]
        assert [m["id"] for m in models] == [server.model]
        request = {"model": server.model, "messages": QUESTION, "temperature": 0}

        whole = requests.post(url + "/api/chat/completions", headers=headers, json={**request, "stream": False}).json()
        message = whole["choices"][0]["message"]
        assert message["content"] == "85" and "47+38=85" in message["reasoning_content"]

        streamed = {"content": "", "reasoning_content": ""}
        with requests.post(url + "/api/chat/completions", headers=headers, json={**request, "stream": True},
                           stream=True) as answer:
            for line in answer.iter_lines():
                if not line.startswith(b"data: {"):
                    continue
                for choice in json.loads(line[6:]).get("choices", []):
                    for field in streamed:
                        streamed[field] += choice["delta"].get(field) or ""
        assert streamed == {field: message[field] for field in streamed}

        for task in ("title", "tags", "follow_up", "queries"):  # the demo model has no say in these, but must be asked
            told = requests.post(f"{url}/api/v1/tasks/{task}/completions", headers=headers, json={
                **request, "messages": [*QUESTION, {"role": "assistant", "content": "85"}], "type": "web_search"})
            assert told.status_code == 200 and told.json()["choices"], (task, told.text)
