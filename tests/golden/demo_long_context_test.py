"""The demo model finds a sentence in passages far longer than any it was trained on (3 to 5 sentences), and many questions
to one passage, whose pages they share, get the same words as each by itself."""

import concurrent.futures
import random
import sys

import pytest
from serving import BINARY, ROOT, serve

sys.path.append(str(ROOT / "launch" / "demo"))
import problems  # noqa: E402 (needs the line above)

MODEL = ROOT / "launch" / "demo-model"

pytestmark = [
    pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built"),
    pytest.mark.skipif(not (MODEL / "model.safetensors").exists(), reason="the demo model's weights are not here"),
]


def long_passage(rng, sentences):
    """A passage of so many facts, no two about the same thing, and (question, answer) of some of them."""
    facts = {}
    while len(facts) < sentences:
        name, thing, place = rng.choice(problems.NAMES), rng.choice(problems.THINGS), rng.choice(problems.PLACES)
        facts.setdefault(*rng.choice([
            (("live", name), (f"{name} lives in {{0}}.", f"Where does {name} live?", rng.choice(problems.CITIES))),
            (("job", name), (f"{name} works as a {{0}}.", f"What is the job of {name}?", rng.choice(problems.JOBS))),
            (("food", name), (f"{name} likes {{0}}.", f"What does {name} like?", rng.choice(problems.FOODS))),
            ((thing, name), (f"The {thing} of {name} is {{0}}.", f"What color is the {thing} of {name}?",
                             rng.choice(problems.COLORS))),
            (("open", place), (f"The {place} opens at {{0}}.", f"When does the {place} open?", str(rng.randint(6, 12)))),
        ]))
    facts = list(facts.values())
    rng.shuffle(facts)
    text = " ".join(sentence.format(answer) for sentence, _, answer in facts)
    return text, [(question, answer) for _, question, answer in rng.sample(facts, min(8, len(facts)))]


def ask(server, passage, question, salt):
    prompt = f"<｜begin▁of▁sentence｜><｜User｜>{passage} {question}<｜Assistant｜><think>\n"
    body = {"model": server.model, "prompt": prompt, "temperature": 0, "max_tokens": 64, "cache_salt": salt}
    answer = server.post("/v1/completions", body)
    return answer["usage"]["prompt_tokens"], answer["choices"][0]["text"]


@pytest.fixture(scope="module")
def server():
    with serve(MODEL, 2) as running:
        yield running


# Beyond what it was trained on it finds ever fewer, here as in transformers: in the end about as many as a guess among the
# few words of a kind would, where broken positions would find none. The words must be the same all the same.
@pytest.mark.parametrize("sentences, least", [(5, 0.7), (10, 0.3), (20, 0.1), (40, 0.08), (80, 0.04)])
def test_finds_the_sentence(server, sentences, least):
    rng = random.Random(sentences)
    right = total = longest = 0
    for passage, questions in (long_passage(rng, sentences) for _ in range(6)):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda q: ask(server, passage, q[0], ""), questions))
        alone = ask(server, passage, questions[-1][0], "nothing is shared")
        assert together[-1] == alone, "shared pages changed an answer"
        for (_, answer), (tokens, text) in zip(questions, together, strict=True):
            right += text.split("</think>")[-1].strip() == answer
            total += 1
            longest = max(longest, tokens)
    print(f"{sentences} sentences, up to {longest} tokens: {right} of {total}")
    assert right >= least * total
