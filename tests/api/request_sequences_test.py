"""The requests that Dify's OpenAI-compatible provider (langgenius/dify-official-plugins, models/openai_api_compatible) and
Open WebUI (open-webui/open-webui, backend/open_webui/routers/openai.py, ollama.py, utils/payload.py) make, in their order
and with their fields, read as they read the answers."""

import json

import pytest
import requests

WEATHER = {"name": "get_weather", "description": "", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Which"}}, "required": ["city"]}}


def dify(server, path, body, stream):
    response = requests.post(f"{server.url}/v1/{path}", data=json.dumps(body, ensure_ascii=False).encode(), stream=stream,
                             headers={"Content-Type": "application/json", "Accept-Charset": "utf-8",
                                      "Authorization": "Bearer any"}, timeout=(10, 120))
    assert response.status_code == 200, response.text
    if response.encoding in (None, "ISO-8859-1"):
        response.encoding = "utf-8"
    return response


def dify_chunks(response):
    """Events as Dify takes a stream apart: at empty lines."""
    for part in response.iter_lines(decode_unicode=True, delimiter="\n\n"):
        part = part.strip()
        if not part or part.startswith(":"):
            continue
        data = part.removeprefix("data:").lstrip()
        if data != "[DONE]":
            yield json.loads(data)


@pytest.mark.parametrize("mode", ["chat", "completion"])
def test_dify_checks_the_credentials(server, mode):
    path = "chat/completions" if mode == "chat" else "completions"
    body = {"model": server.model, "max_tokens": 5}
    body.update({"messages": [{"role": "user", "content": "ping"}]} if mode == "chat" else {"prompt": "ping"})
    answer = dify(server, path, body, False).json()
    assert answer["object"] == ("chat.completion" if mode == "chat" else "text_completion")
    streamed = list(dify_chunks(dify(server, path, {**body, "max_tokens": 10, "stream": True}, True)))
    assert streamed and all(chunk["choices"] for chunk in streamed)


def test_dify_chats(server):
    parameters = {"temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "max_tokens": 150}
    messages = [{"role": "system", "content": "You answer."}, {"role": "user", "content": "What is 47 + 38?"}]
    body = {"model": server.model, "stream": True, **parameters, "messages": messages, "stop": ["\nHuman:"],
            "user": "a81bc81b-dead-4e5d-abff-90865d1e13b1"}
    thought = answer = ""
    finish = None
    for chunk in dify_chunks(dify(server, "chat/completions", body, True)):
        delta = chunk["choices"][0]["delta"]
        finish = chunk["choices"][0].get("finish_reason")
        thought += delta.get("reasoning_content") or ""
        answer += delta.get("content") or ""
    whole = dify(server, "chat/completions", {**body, "stream": False}, False).json()
    message = whole["choices"][0]["message"]
    assert (thought, answer, finish) == (message["reasoning_content"], message["content"],
                                         whole["choices"][0]["finish_reason"])
    assert whole["usage"]["prompt_tokens"] > 0
    # It sends thinking back as part of the answer, and parts of text instead of text.
    messages += [{"role": "assistant", "content": f"<think>\n{thought}\n</think>{answer}"},
                 {"role": "user", "content": [{"type": "text", "text": "And 1 + 1?"}]}]
    assert dify(server, "chat/completions", {**body, "messages": messages, "stream": False}, False).json()["choices"]


def test_dify_calls_tools(server):
    body = {"model": server.model, "stream": True, "max_tokens": 20, "temperature": 0, "tool_choice": "auto",
            "tools": [{"type": "function", "function": WEATHER}], "user": "u",
            "messages": [{"role": "user", "content": "What is 47 + 38?"},
                         {"role": "assistant", "content": "", "tool_calls": [
                             {"id": "call_1", "type": "function",
                              "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}]},
                         {"role": "tool", "content": "sunny", "tool_call_id": "call_1"}]}
    assert list(dify_chunks(dify(server, "chat/completions", body, True)))[-1]["choices"][0]["finish_reason"]


def test_dify_asks_for_json(server):
    schema = {"name": "answer", "schema": {"type": "object", "properties": {"sum": {"type": "integer"}},
                                           "required": ["sum"], "additionalProperties": False}, "strict": True}
    body = {"model": server.model, "stream": False, "max_tokens": 300, "max_reasoning_tokens": 4, "seed": 1,
            "messages": [{"role": "user", "content": "What is 47 + 38?"}],
            "response_format": {"type": "json_schema", "json_schema": schema}}
    choice, = dify(server, "chat/completions", body, False).json()["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"])["sum"], int)


def web_ui(server, method, path, body=None):
    headers = {"Content-Type": "application/json", "Authorization": "Bearer any", "X-OpenWebUI-User-Name": "A%20B",
               "X-OpenWebUI-User-Id": "1", "X-OpenWebUI-User-Role": "user", "X-OpenWebUI-Chat-Id": "2"}
    response = requests.request(method, server.url + path, headers=headers, timeout=120,
                                data=None if body is None else json.dumps(body))
    assert response.status_code == 200, response.text
    return response


def test_open_web_ui_over_the_openai_api(server):
    listed = web_ui(server, "GET", "/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [server.model]
    chat = {"stream": True, "model": server.model, "temperature": 0.0, "top_p": 1.0, "max_tokens": 120, "seed": 0,
            "stop": ["\n\nUser:"], "frequency_penalty": 0.0, "presence_penalty": 0.0, "min_p": 0.0, "logit_bias": {},
            "reasoning_effort": "medium", "stream_options": {"include_usage": True},
            "messages": [{"role": "system", "content": "User Context:\n\n"}, {"role": "user", "content": "What is 47 + 38?"}]}
    response = web_ui(server, "POST", "/v1/chat/completions", chat)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[-1]["usage"]["completion_tokens"] > 0 and not chunks[-1]["choices"]
    answer = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    # Then it asks for follow-ups, a title and tags, each as one user message, not streamed.
    for task in ("Suggest 3-5 follow-up questions. JSON format: { \"follow_ups\": [] }",
                 "Generate a concise title. JSON format: { \"title\": \"\" }", "Generate 1-3 tags. { \"tags\": [] }"):
        body = {"model": server.model, "stream": False, "max_completion_tokens": 30, "messages": [
            {"role": "user", "content": f"### Task:\n{task}\n### Chat History:\nUSER: What is 47 + 38?\nASSISTANT: {answer}"}]}
        assert web_ui(server, "POST", "/v1/chat/completions", body).json()["choices"][0]["message"]


def test_open_web_ui_over_the_ollama_api(server):
    assert web_ui(server, "GET", "/api/version").json()["version"]
    model, = web_ui(server, "GET", "/api/tags").json()["models"]
    assert {"name", "model", "size", "digest", "details", "modified_at"} <= set(model)
    assert web_ui(server, "GET", "/api/ps").json()["models"][0]["model"] == model["model"]
    assert web_ui(server, "POST", "/api/show", {"name": model["name"], "model": model["model"]}).json()["capabilities"]
    chat = {"model": model["model"], "stream": True, "keep_alive": "5m",
            "options": {"temperature": 0.0, "num_ctx": 2048, "num_predict": 60, "repeat_last_n": 64, "mirostat": 0},
            "messages": [{"role": "user", "content": "What is 47 + 38?"}]}
    parts = [json.loads(line) for line in web_ui(server, "POST", "/api/chat", chat).text.splitlines()]
    assert parts[-1]["done"] and parts[-1]["eval_count"] > 0
    assert all("message" in part for part in parts)
