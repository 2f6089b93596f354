"""OpenAI's own client against the server. Answers are compared with each other (greedy decoding repeats itself) and with
the `tokenizers` package; what the model says does not matter."""

import asyncio
import math

import openai
import pytest
from conftest import DEMO_MODEL
from tokenizers import Tokenizer

QUESTION = "What is 47 + 38?"


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))


def ask(client, server, question=QUESTION, **more):
    return client.chat.completions.create(model=server.model, messages=[{"role": "user", "content": question}],
                                          **{"temperature": 0, "max_tokens": 64, **more})


def complete(client, server, prompt=QUESTION, **more):
    return client.completions.create(model=server.model, prompt=prompt, **{"temperature": 0, "max_tokens": 12, **more})


def joined(stream):
    """(reasoning, content, finish reason, usage) of a streamed chat."""
    reasoning, content, finish, usage = "", "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return reasoning, content, finish, usage


def test_models(client, server):
    listed = client.models.list().data
    assert [model.id for model in listed] == ["demo-model"] == [server.model]
    assert client.models.retrieve("demo-model").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_chat(client, server, puzzle):
    answer = ask(client, server, puzzle)
    assert answer.object == "chat.completion" and answer.model == server.model and answer.id.startswith("chatcmpl-")
    choice, = answer.choices
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert choice.message.reasoning_content and "<think>" not in choice.message.reasoning_content
    assert "</think>" not in choice.message.content
    usage = answer.usage
    assert 0 < usage.completion_tokens_details.reasoning_tokens <= usage.completion_tokens <= 64
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_streamed_chat_says_the_same(client, server, puzzle):
    whole = ask(client, server, puzzle)
    stream = ask(client, server, puzzle, stream=True, stream_options={"include_usage": True})
    reasoning, content, finish, usage = joined(stream)
    message = whole.choices[0].message
    assert reasoning == message.reasoning_content and content == message.content
    assert finish == whole.choices[0].finish_reason and usage == whole.usage


def test_stream_has_no_usage_unless_asked(client, server):
    chunks = list(ask(client, server, stream=True, max_tokens=4))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks].count("length") == 1


def test_async_client(server):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
            async def one():
                stream = await client.chat.completions.create(
                    model=server.model, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24,
                    stream=True)
                return [chunk.choices[0].delta.to_dict() async for chunk in stream]
            return await asyncio.gather(*(one() for _ in range(8)))

    def text(deltas):
        return "".join(delta.get("reasoning_content") or delta.get("content") or "" for delta in deltas)

    answers = [text(deltas) for deltas in asyncio.run(ask_all())]
    assert answers[0] and answers == [answers[0]] * 8


def test_conversation_goes_into_the_prompt(client, server):
    short = ask(client, server, max_tokens=1).usage.prompt_tokens
    answer = client.chat.completions.create(
        model=server.model, max_tokens=1,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                  {"role": "assistant", "content": "Hello."},
                  {"role": "user", "content": [{"type": "text", "text": QUESTION}]}])
    assert answer.usage.prompt_tokens > short


def test_several_answers(client, server):
    answer = ask(client, server, n=3, temperature=1, seed=7, max_tokens=24)
    texts = [choice.message.reasoning_content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) > 1
    again = ask(client, server, n=3, temperature=1, seed=7, max_tokens=24)
    assert [choice.message.reasoning_content for choice in again.choices] == texts


def test_chat_logprobs(client, server):
    choice, = ask(client, server, max_tokens=8, logprobs=True, top_logprobs=3).choices
    assert len(choice.logprobs.content) == 8
    for token in choice.logprobs.content:
        likeliest = token.top_logprobs[0]
        assert len(token.top_logprobs) == 3 and (token.token, token.logprob) == (likeliest.token, likeliest.logprob)
        assert bytes(token.bytes).decode(errors="replace") == token.token


def test_completion(client, server):
    whole = complete(client, server)
    assert whole.object == "text_completion" and whole.usage.completion_tokens <= 12
    streamed = list(complete(client, server, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text
    assert streamed[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_token_ids_and_text_are_the_same_prompt(client, server, tokenizer):
    ids = tokenizer.encode(QUESTION).ids
    by_text = complete(client, server, extra_body={"return_token_ids": True}).choices[0]
    by_ids = complete(client, server, ids, extra_body={"return_token_ids": True}).choices[0]
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == ids
    assert by_text.token_ids == by_ids.token_ids
    assert by_text.text == by_ids.text == tokenizer.decode(by_text.token_ids)


@pytest.mark.parametrize("as_ids", [False, True])
def test_lists_of_prompts(client, server, tokenizer, as_ids):
    texts = ["What is 47 + 38?", "What number comes next? 2, 4, 6"]
    prompts = [tokenizer.encode(text).ids for text in texts] if as_ids else texts
    answer = complete(client, server, prompts, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = [complete(client, server, prompt).choices[0].text for prompt in prompts]
    assert [choice.text for choice in answer.choices] == [alone[0], alone[0], alone[1], alone[1]]


def test_echo_scores_the_prompt(client, server, tokenizer):
    ids = tokenizer.encode(QUESTION).ids
    generated = complete(client, server, logprobs=2, max_tokens=6, extra_body={"return_token_ids": True}).choices[0]
    whole_ids = ids + generated.token_ids
    scored = complete(client, server, whole_ids, echo=True, max_tokens=0, logprobs=2).choices[0]
    assert scored.text == tokenizer.decode(whole_ids)
    logprobs = scored.logprobs
    assert len(logprobs.tokens) == len(whole_ids) and logprobs.token_logprobs[0] is None
    assert "".join(logprobs.tokens) == scored.text
    assert [scored.text[offset] for offset in logprobs.text_offset] == [token[0] for token in logprobs.tokens]
    # Read as a prompt, the tokens are as likely as they were when they were generated.
    for read, said in zip(logprobs.token_logprobs[len(ids):], generated.logprobs.token_logprobs, strict=True):
        assert math.isclose(read, said, abs_tol=1e-3)


def test_stop_strings_end_before_themselves(client, server, puzzle):
    text = complete(client, server, puzzle, max_tokens=40).choices[0].text
    middle = len(text) // 2
    for stop in (text[middle], text[middle:middle + 5], ["never met", text[middle:middle + 3]]):
        one = stop if isinstance(stop, str) else stop[1]
        cut = complete(client, server, puzzle, max_tokens=40, stop=stop).choices[0]
        assert cut.text == text[:text.index(one)] and cut.finish_reason == "stop"
        streamed = complete(client, server, puzzle, max_tokens=40, stop=stop, stream=True)
        assert "".join(chunk.choices[0].text for chunk in streamed) == cut.text


def test_stop_token_ids(client, server, puzzle):
    ids = complete(client, server, puzzle, extra_body={"return_token_ids": True}).choices[0].token_ids
    stop = ids[5]
    cut = complete(client, server, puzzle, extra_body={"return_token_ids": True, "stop_token_ids": [stop]})
    assert cut.choices[0].token_ids == ids[:ids.index(stop) + 1] and cut.choices[0].finish_reason == "stop"


def refused(call, error=openai.BadRequestError):
    with pytest.raises(error) as raised:
        call()
    return raised.value


def test_wrong_fields_are_named(client, server):
    for field, value in {"temperature": 9, "top_p": "x", "n": 0, "seed": 1.5, "max_tokens": -1, "stop": 3}.items():
        error = refused(lambda: ask(client, server, **{field: value}))  # noqa: B023 (called at once)
        assert error.param == field and field in error.message and error.type == "invalid_request_error", field
    assert refused(lambda: ask(client, server, extra_body={"no_such_field": 1})).param == "no_such_field"
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    assert "text only" in refused(lambda: ask(client, server, image)).message


def test_unknown_model(client):
    def call():
        return client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hi"}])
    error = refused(call, openai.NotFoundError)
    assert error.code == "model_not_found" and "gpt-4" in error.message


def test_prompt_longer_than_the_context(client, server):
    limit = server.limit
    error = refused(lambda: complete(client, server, [5] * (limit + 10)))
    assert error.code == "context_length_exceeded"
    assert str(limit) in error.message and str(limit + 10) in error.message


def test_client_that_leaves_early_frees_its_place(client, server):
    with ask(client, server, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
    assert ask(client, server, max_tokens=4).usage.completion_tokens == 4
