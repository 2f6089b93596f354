"""Ollama's own client against the server's /api."""

import json
import urllib.request

import ollama
import pytest

QUESTION = [{"role": "user", "content": "What is 47 + 38?"}]
GREEDY = {"temperature": 0, "num_predict": 40}


@pytest.fixture(scope="module")
def client(server):
    return ollama.Client(host=server.url)


def test_models(client, server):
    assert [model.model for model in client.list().models] == ["demo-model:latest"]
    shown = client.show("demo-model:latest")
    assert "completion" in shown.capabilities
    assert shown.modelinfo["deepseek_v3.context_length"] == server.limit
    with pytest.raises(ollama.ResponseError) as raised:
        client.show("llama3")
    assert raised.value.status_code == 404 and "llama3" in raised.value.error
    with urllib.request.urlopen(server.url + "/api/version") as response:
        assert json.load(response)["version"]


def test_chat(client):
    whole = client.chat("demo-model", QUESTION, options=GREEDY)
    assert whole.done and whole.message.role == "assistant" and whole.message.thinking
    assert 0 < whole.eval_count <= 40 and whole.prompt_eval_count > 0 and whole.total_duration > 0
    parts = list(client.chat("demo-model:latest", QUESTION, options=GREEDY, stream=True))
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count


def test_generate(client):
    whole = client.generate("demo-model", "What is 47 + 38?", options=GREEDY)
    assert whole.thinking == client.chat("demo-model", QUESTION, options=GREEDY).message.thinking
    assert "".join(part.thinking or "" for part in client.generate("demo-model", "What is 47 + 38?", options=GREEDY,
                                                                   stream=True)) == whole.thinking
    assert client.generate("demo-model").done_reason == "load"


def test_without_thinking(client):
    answer = client.chat("demo-model", QUESTION, options=GREEDY, think=False)
    assert not answer.message.thinking and answer.message.content


def test_format(client):
    schema = {"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 999}},
              "required": ["sum"]}
    answer = client.chat("demo-model", QUESTION, think=False, format=schema, options={"seed": 1, "num_predict": 100})
    assert 0 <= json.loads(answer.message.content)["sum"] <= 999


def test_errors(client):
    for call in (lambda: client.chat("llama3", QUESTION), lambda: client.chat("demo-model", [{"role": "alien", "content": ""}]),
                 lambda: client.chat("demo-model", QUESTION, options={"temperature": 9})):
        with pytest.raises(ollama.ResponseError) as raised:
            call()
        assert raised.value.status_code in (400, 404) and raised.value.error
