"""The committed random checkpoints, served on 1 to 4 ranks, against transformers' values in golden.json."""

import concurrent.futures
import json

import pytest
from serving import BINARY, ROOT, largest_difference, prompt_logprobs, serve

FIXTURES = ROOT / "tests" / "fixtures" / "models"
TOLERANCE = 2e-3  # both compute in FP32; a wrong step moves log-probabilities by nats
# Every checkpoint once, on 1 to 4 ranks in turn, so that models with experts and without are on each number, and once more
# what is in FP8. Every one on every number, without a server, is in tests/unit/model_golden_test.cpp.
ALL_NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/golden.json"))
CASES = [(name, 1 + i % 4) for i, name in enumerate(ALL_NAMES)] + [(name, 3) for name in ALL_NAMES if "fp8" in name]

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def served(request):
    name, ranks = request.param
    with serve(FIXTURES / name, ranks) as server:
        yield server, json.loads((FIXTURES / name / "golden.json").read_text())["prompts"]


def test_log_probabilities(served, record_property):
    server, prompts = served
    worst = max(largest_difference(server.score(p["ids"]), p["logprobs"]) for p in prompts[1:])
    record_property("max_difference", worst)
    print(f"largest difference {worst:.2g}")
    assert worst <= TOLERANCE


def test_top_five(served):
    server, prompts = served
    for prompt in prompts:
        choice, = server.complete(prompt["ids"], echo=True, logprobs=5, max_tokens=1)
        for position, top in prompt["top5"]:
            got = choice["logprobs"]["top_logprobs"][position + 1]
            got = sorted(got.values(), reverse=True)[:5]
            assert largest_difference(got, [value for _, value in top]) <= TOLERANCE


def test_greedy(served):
    server, prompts = served
    for prompt in prompts:
        if not prompt.get("greedy"):
            continue
        tokens, values = server.greedy(prompt["ids"], len(prompt["greedy"]))
        # The end-of-text token of these models is an ordinary one, and ends the server's answer only.
        length = prompt["greedy"].index(1) if 1 in prompt["greedy"] else len(prompt["greedy"])
        assert tokens[:length] == prompt["greedy"][:length]
        assert largest_difference(values[:length], prompt["greedy_logprobs"][:length]) <= TOLERANCE


def test_company_changes_nothing(served):
    """Prompts of all lengths side by side, in one request and in many, give exactly what each gives alone."""
    server, prompts = served
    ids = [p["ids"] for p in prompts]
    settings = dict(echo=True, logprobs=0, max_tokens=8)
    alone = [server.complete(i, **settings)[0]["logprobs"] for i in ids]
    together = [choice["logprobs"] for choice in server.complete(ids, **settings)]
    with concurrent.futures.ThreadPoolExecutor(len(ids)) as pool:
        at_once = [choices[0]["logprobs"] for choices in pool.map(lambda i: server.complete(i, **settings), ids)]
    for a, b, c, prompt in zip(alone, together, at_once, ids, strict=True):
        assert a["token_logprobs"] == b["token_logprobs"] == c["token_logprobs"], len(prompt)
        assert a["tokens"] == b["tokens"] == c["tokens"], len(prompt)


def test_prompt_may_be_scored_and_continued(served):
    server, prompts = served
    prompt = prompts[4]
    choice, = server.complete(prompt["ids"], echo=True, logprobs=1, max_tokens=1)
    assert largest_difference(prompt_logprobs(choice, prompt["ids"]), prompt["logprobs"]) <= TOLERANCE
    assert len(choice["logprobs"]["token_logprobs"]) == len(prompt["ids"]) + 1
