"""The fields that shape an answer, checked against what they are defined to do: from the reported log-probabilities it is
worked out which token should have been chosen."""

import math

import openai
import pytest
from conftest import DEMO_MODEL
from tokenizers import Tokenizer

PROMPT = "What number comes next? 2, 4, 6, 8, 10"
STRANGE = "fish house tree fish Monday"  # nothing the model knows, so that it is sure of nothing


@pytest.fixture(scope="module")
def complete(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)

    def complete(prompt=PROMPT, **more):
        extra = {"return_token_ids": True, **more.pop("extra_body", {})}
        return client.completions.create(model=server.model, prompt=prompt, extra_body=extra,
                                         **{"temperature": 0, "max_tokens": 16, **more}).choices[0]
    return complete


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))


@pytest.mark.parametrize("penalties", [
    {"presence_penalty": 2}, {"frequency_penalty": 0.7}, {"presence_penalty": -1, "frequency_penalty": 1.2},
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8, "frequency_penalty": 0.5}])
def test_penalties(server, complete, tokenizer, penalties):
    """Raw log-probabilities differ from logits by a constant, so the chosen token can be worked out from them, except
    with the repetition penalty, which multiplies: its formula is tested in tests/unit/token_steering_test.cpp."""
    repetition = penalties.pop("repetition_penalty", 1)
    said = complete(STRANGE, max_tokens=48, logprobs=20,
                    extra_body={"repetition_penalty": repetition, "ignore_eos": True}, **penalties)
    plain = complete(STRANGE, max_tokens=48, extra_body={"ignore_eos": True})
    assert said.token_ids != plain.token_ids, "the penalties changed nothing"
    if repetition != 1:
        return
    presence, frequency = penalties.get("presence_penalty", 0), penalties.get("frequency_penalty", 0)
    counts = {}
    for token, label, top in zip(said.token_ids, said.logprobs.tokens, said.logprobs.top_logprobs, strict=True):
        def after(name):
            n = counts.get(name, 0)  # noqa: B023
            return top[name] - (presence if n else 0) - frequency * n  # noqa: B023
        best = max(after(name) for name in top)
        assert math.isclose(after(label), best, abs_tol=1e-4), (label, token, top, counts)
        counts[label] = counts.get(label, 0) + 1


def test_logit_bias(complete, tokenizer):
    plain = complete().token_ids
    banned = complete(logit_bias={str(plain[0]): -100}).token_ids
    assert banned[0] != plain[0] and plain[0] not in banned
    wanted = tokenizer.token_to_id("7")
    assert complete(logit_bias={str(wanted): 100}, max_tokens=4).token_ids == [wanted] * 4


def test_allowed_token_ids(complete, tokenizer):
    allowed = [tokenizer.token_to_id(digit) for digit in "123"]
    assert set(complete(extra_body={"allowed_token_ids": allowed}).token_ids) <= set(allowed)


def test_min_tokens(complete):
    plain = complete()
    stop = plain.token_ids[2]
    early = complete(extra_body={"stop_token_ids": [stop]})
    assert len(early.token_ids) <= 3 and early.finish_reason == "stop"
    late = complete(extra_body={"stop_token_ids": [stop], "min_tokens": 10})
    assert len(late.token_ids) >= 10 and stop not in late.token_ids[:10]
    text = complete(stop=[plain.text[0]], extra_body={"min_tokens": 10}).text
    assert text.startswith(plain.text[:5])


def test_stop_string_in_the_output(complete):
    text = complete().text
    stop = text[4:7]
    assert complete(stop=stop, extra_body={"include_stop_str_in_output": True}).text == text[:text.index(stop) + 3]


def test_ignore_eos(complete):
    prompt = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\nHello.\n</think>\n\nHello.<｜end▁of▁sentence｜>"
    assert len(complete(prompt, max_tokens=40, extra_body={"ignore_eos": True}).token_ids) == 40


def test_seeds(complete):
    texts = {seed: complete(temperature=1, seed=seed, max_tokens=20).text for seed in (1, 2, 3)}
    assert len(set(texts.values())) > 1
    assert all(complete(temperature=1, seed=seed, max_tokens=20).text == text for seed, text in texts.items())


def test_best_of(server, complete):
    """The likeliest of the same draws that `n` gives."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    wanted = {"model": server.model, "prompt": PROMPT, "temperature": 1, "seed": 5, "max_tokens": 8, "logprobs": 0}
    drawn = client.completions.create(n=4, **wanted).choices
    mean = [sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs) for choice in drawn]
    best = client.completions.create(n=1, best_of=4, **wanted).choices
    assert [choice.text for choice in best] == [drawn[mean.index(max(mean))].text]


@pytest.mark.parametrize("budget", [0, 5, 12])
def test_thinking_budget(server, puzzle, budget):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)

    def ask(**extra):
        return client.chat.completions.create(
            model=server.model, messages=[{"role": "user", "content": puzzle}], temperature=0, max_tokens=100,
            extra_body=extra)
    free, bound = ask(), ask(max_reasoning_tokens=budget)
    spent = bound.usage.completion_tokens_details.reasoning_tokens
    assert spent <= budget + 3 < free.usage.completion_tokens_details.reasoning_tokens
    thought = bound.choices[0].message.reasoning_content or ""
    assert free.choices[0].message.reasoning_content.startswith(thought)
    assert bound.choices[0].message.content, "there is no answer"


@pytest.mark.parametrize("field, value", [
    ("presence_penalty", 3), ("frequency_penalty", "high"), ("logit_bias", {"a": 1}), ("logit_bias", {"5": 1000}),
    ("logit_bias", {"99999": 1})])
def test_wrong_values_are_refused(complete, field, value):
    with pytest.raises(openai.BadRequestError) as raised:
        complete(**{field: value})
    assert raised.value.param == field


@pytest.mark.parametrize("field, value", [
    ("repetition_penalty", 0), ("min_tokens", 17), ("allowed_token_ids", []), ("allowed_token_ids", [99999]),
    ("use_beam_search", True), ("bad_words", ["x"]), ("length_penalty", 0.5), ("priority", 1),
    ("spaces_between_special_tokens", False)])
def test_wrong_extra_values_are_refused(complete, field, value):
    with pytest.raises(openai.BadRequestError) as raised:
        complete(extra_body={field: value})
    assert raised.value.param == field


def test_what_changes_nothing_is_taken(complete):
    assert complete().token_ids == complete(extra_body={"length_penalty": 1.0, "priority": 0, "use_beam_search": False,
                                                        "spaces_between_special_tokens": True}).token_ids


def test_a_request_that_does_not_say_is_sampled_as_the_model_recommends(complete):
    """The demo model's generation_config.json has R1's temperature and top_p."""
    unsaid, differ = {"temperature": openai.NOT_GIVEN}, 0
    for seed in range(5):
        said = complete(STRANGE, **unsaid, seed=seed).token_ids
        assert said == complete(STRANGE, temperature=0.6, top_p=0.95, seed=seed).token_ids
        differ += said != complete(STRANGE, temperature=1, top_p=1, seed=seed).token_ids
    assert differ > 0


@pytest.mark.parametrize("extra, field", [
    ({"continue_final_message": True}, "continue_final_message"), ({"add_generation_prompt": False}, "add_generation_prompt"),
    ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs")])
def test_a_prompt_in_which_nothing_is_to_be_answered_is_refused(server, extra, field):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=server.model, messages=[{"role": "user", "content": PROMPT}], extra_body=extra)
    assert raised.value.param == field


def test_an_answer_that_is_begun_is_refused(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="prefix"):
        client.chat.completions.create(model=server.model, messages=[
            {"role": "user", "content": PROMPT}, {"role": "assistant", "content": "The", "prefix": True}])
