"""Answers bound to a form: JSON, JSON schemas, choices, regular expressions, grammars and calls of tools. The model is left
no other way, so what comes out is checked with a JSON-Schema validator whatever the model knows."""

import json
import re

import jsonschema
import openai
import pytest
from pydantic import BaseModel

QUESTION = "What is 47 + 38?"

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["human", "robot", None]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,5}$"}, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"}},
    "required": ["name", "age", "home"], "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9},
                                                          "born": {"type": "string", "format": "date"}},
                        "required": ["x", "born"], "additionalProperties": False}}}

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 10},
                                                    "unit": {"enum": ["C", "F"]}},
                   "required": ["city", "unit"], "additionalProperties": False}}}
ADD = {"type": "function", "function": {
    "name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99},
                                                                   "b": {"type": "integer", "minimum": 0, "maximum": 99}},
                                  "required": ["a", "b"], "additionalProperties": False}}}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)


@pytest.fixture
def ask(server, client):
    def ask(**more):
        extra = {"max_reasoning_tokens": 4, **more.pop("extra_body", {})}
        return client.chat.completions.create(
            model=server.model, messages=[{"role": "user", "content": QUESTION}], extra_body=extra,
            **{"temperature": 1, "seed": 3, "max_tokens": 400, **more})
    return ask


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.mark.parametrize("seed", range(4))
def test_json_schema(ask, seed):
    choice, = ask(response_format=schema_format(PERSON), seed=seed).choices
    assert choice.finish_reason == "stop", choice
    jsonschema.validate(json.loads(choice.message.content), PERSON)
    assert choice.message.reasoning_content is not None


def test_json_object(ask):
    choice, = ask(response_format={"type": "json_object"}, extra_body={"logit_bias": {}}).choices
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.message.content.startswith("{")


def test_parsed_by_the_client(server, client):
    class Sum(BaseModel):
        left: int
        right: bool

    schema = {"type": "object", "properties": {"left": {"type": "integer", "minimum": 0, "maximum": 999},
                                               "right": {"type": "boolean"}}, "required": ["left", "right"]}
    assert set(Sum.model_json_schema()["properties"]) == set(schema["properties"])
    parsed = client.chat.completions.parse(model=server.model, messages=[{"role": "user", "content": QUESTION}],
                                           response_format=Sum, max_tokens=300, seed=1,
                                           extra_body={"max_reasoning_tokens": 4})
    assert isinstance(parsed.choices[0].message.parsed, Sum)


@pytest.mark.parametrize("body, matches", [
    ({"guided_choice": ["yes", "no", "perhaps"]}, lambda text: text in ("yes", "no", "perhaps")),
    ({"structured_outputs": {"choice": ["left", "right"]}}, lambda text: text in ("left", "right")),
    ({"guided_regex": r"\d{3}-[a-f]+!"}, lambda text: re.fullmatch(r"\d{3}-[a-f]+!", text)),
    ({"grammar": 'root ::= "The answer is " [0-9]{1,3} "."'}, lambda text: re.fullmatch(r"The answer is \d{1,3}\.", text)),
    ({"json_schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}},
     lambda text: [type(item) for item in json.loads(text)] == [bool, bool]),
    ({"guided_json": {"const": {"a": [1, "é\""]}}}, lambda text: json.loads(text) == {"a": [1, "é\""]})])
def test_other_forms(server, client, ask, body, matches):
    choice, = ask(extra_body=body).choices
    assert choice.finish_reason == "stop" and matches(choice.message.content), choice.message.content
    text = client.completions.create(model=server.model, prompt=QUESTION, max_tokens=300, seed=1, temperature=1,
                                     extra_body=body).choices[0].text
    assert matches(text), text


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_tools_that_must_be_called(ask, choice, stream):
    tools = {tool["function"]["name"]: tool for tool in (WEATHER, ADD)}
    wanted = {"tools": [WEATHER, ADD], "tool_choice": choice, "parallel_tool_calls": False, "stream": stream}
    if stream:
        deltas = [chunk.choices[0] for chunk in ask(**wanted)]
        calls = [call for delta in deltas for call in delta.delta.tool_calls or []]
        content = "".join(delta.delta.content or "" for delta in deltas)
        finish = deltas[-1].finish_reason
    else:
        answer, = ask(**wanted).choices
        calls, content, finish = answer.message.tool_calls, answer.message.content, answer.finish_reason
    assert finish == "tool_calls" and not content
    call, = calls
    assert call.type == "function" and call.id
    assert choice == "required" or call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), tools[call.function.name]["function"]["parameters"])


def test_tools_are_told_to_the_model(server, client):
    def prompt_tokens(**more):
        return client.chat.completions.create(model=server.model, messages=[{"role": "user", "content": QUESTION}],
                                              max_tokens=1, **more).usage.prompt_tokens
    plain, told = prompt_tokens(), prompt_tokens(tools=[WEATHER])
    assert told > plain and prompt_tokens(tools=[WEATHER], tool_choice="none") == plain


def test_a_conversation_goes_on_after_a_call(server, client):
    answer = client.chat.completions.create(
        model=server.model, max_tokens=8, tools=[ADD],
        messages=[{"role": "user", "content": QUESTION},
                  {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {
                      "name": "add", "arguments": '{"a": 47, "b": 38}'}}]},
                  {"role": "tool", "tool_call_id": "1", "content": "85"}])
    assert answer.usage.completion_tokens == 8 or answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("body, field", [
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": schema_format({"type": "object", "properties": {"a": {"not": {"type": "null"}}}})}, "response_format"),
    ({"response_format": schema_format({"$ref": "http://example.com/schema"})}, "response_format"),
    ({"response_format": schema_format({"type": "string", "pattern": "(a)\\1"})}, "response_format"),
    ({"response_format": schema_format({"allOf": [{"$ref": "#"}]})}, "response_format"),
    ({"grammar": "root ::= root"}, "grammar"), ({"grammar": "root ::= ("}, "grammar"),
    ({"grammar": 'root ::= "a"', "guided_regex": "a"}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"), ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice")])
def test_what_cannot_be_done_is_refused(ask, body, field):
    with pytest.raises(openai.BadRequestError) as raised:
        ask(extra_body=body)
    assert raised.value.param == field, raised.value.message


@pytest.mark.parametrize("schema", [
    {"type": "array", "items": {"type": "array", "items": {"type": "string", "maxLength": 1000}, "maxItems": 1000},
     "maxItems": 1000},
    {"type": "string", "pattern": "^(((a{1,200}){1,200}){1,200}){1,200}$"},
    {"anyOf": [{"type": "string", "pattern": "(a|b)*a(a|b){%d}" % n} for n in range(1, 300)]}])
def test_schemas_made_to_explode(ask, schema):
    """Each is answered or refused in seconds; the server goes on."""
    try:
        ask(response_format=schema_format(schema), max_tokens=8, timeout=60)
    except openai.BadRequestError as error:
        assert "large" in error.message or "grammar" in error.message
    assert ask(max_tokens=2).usage.completion_tokens == 2
