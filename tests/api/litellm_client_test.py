"""LiteLLM, with which gateways speak to many providers, against the server as an OpenAI-compatible one and as vLLM."""

import asyncio
import json

import pytest

litellm = pytest.importorskip("litellm", reason="litellm is not installed: tests/venv --all")

QUESTION = [{"role": "user", "content": "What is 47 + 38?"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a"]}}}


@pytest.fixture(params=["openai", "hosted_vllm"])
def ask(request, server):
    options = {"model": f"{request.param}/{server.model}", "api_base": server.url + "/v1", "api_key": "any",
               "temperature": 0, "max_tokens": 60}
    return lambda **more: litellm.completion(messages=QUESTION, **{**options, **more})


def test_chat(ask):
    answer = ask()
    message = answer.choices[0].message
    assert message.reasoning_content and answer.usage.completion_tokens <= 60
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    joined = "".join(getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks if chunk.choices)
    assert joined == message.reasoning_content
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens == answer.usage.completion_tokens


def test_structured_answers_and_tools(ask):
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"],
              "additionalProperties": False}
    extra = {"extra_body": {"max_reasoning_tokens": 4}, "seed": 1, "max_tokens": 200}
    answer = ask(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
                 **extra)
    assert set(json.loads(answer.choices[0].message.content)) == {"yes"}
    call, = ask(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **extra).choices[0].message.tool_calls
    assert call.function.name == "add" and 0 <= json.loads(call.function.arguments)["a"] <= 99


def test_asynchronously(server):
    async def ask_all():
        return await asyncio.gather(*(litellm.acompletion(
            model=f"openai/{server.model}", api_base=server.url + "/v1", api_key="any", messages=QUESTION, temperature=0,
            max_tokens=16) for _ in range(8)))
    answers = {answer.choices[0].message.reasoning_content for answer in asyncio.run(ask_all())}
    assert len(answers) == 1


def test_text_completion(server):
    answer = litellm.text_completion(model=f"text-completion-openai/{server.model}", prompt="2, 4, 6,", max_tokens=4,
                                     api_base=server.url + "/v1", api_key="any", temperature=0)
    assert answer.choices[0].text


def test_errors_have_their_own_types(server):
    def refused(**more):
        return litellm.completion(**{"model": f"openai/{server.model}", "messages": QUESTION, "max_retries": 0,
                                     "api_base": server.url + "/v1", "api_key": "any", **more})
    with pytest.raises(litellm.NotFoundError):
        refused(model="openai/gpt-4")
    with pytest.raises(litellm.BadRequestError):
        refused(temperature=9)
    with pytest.raises(litellm.ContextWindowExceededError):
        refused(messages=[{"role": "user", "content": "long " * 100000}])
