"""Files that llama.cpp's own quantizer wrote, with and without an importance matrix, answer in Shoal as in llama.cpp
(make_llama_golden.py). llama.cpp rounds activations to 8 bits at every product, so the two agree up to that noise."""

import json
import math

import pytest
from serving import BINARY, ROOT, serve

FIXTURES = ROOT / "tests" / "fixtures" / "gguf"
GOLDEN = json.loads((FIXTURES / "golden.json").read_text())

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


def divergence(reference, other):
    """KL divergence over the tokens that both list, the rest as one."""
    p = {t: math.exp(v) for t, v in reference}
    q = {t: math.exp(v) for t, v in other}
    common = p.keys() & q.keys()
    rest_p, rest_q = 1 - sum(p[t] for t in common), 1 - sum(q[t] for t in common)
    total = sum(p[t] * math.log(p[t] / q[t]) for t in common)
    return total + (rest_p * math.log(rest_p / max(rest_q, 1e-6)) if rest_p > 1e-6 else 0)


@pytest.mark.parametrize("name", GOLDEN)
def test_agrees(name, record_property):
    divergences, agreements = [], []
    with serve(FIXTURES / name, 2 if name.startswith("moe") else 1) as server:
        for prompt in GOLDEN[name]["prompts"]:
            choice, = server.complete(prompt["ids"], echo=True, logprobs=16, max_tokens=1, return_token_ids=True)
            # The last one is of the token that was generated.
            for row, got in zip(prompt["top"], ids_of(choice["logprobs"]["top_logprobs"][1:]), strict=True):
                divergences.append(divergence(row, got))
                agreements.append(row[0][0] == max(got, key=lambda pair: pair[1])[0])
    mean, top1 = sum(divergences) / len(divergences), sum(agreements) / len(agreements)
    record_property("kl_mean", mean)
    record_property("top1", top1)
    print(f"{name}: KL {mean:.2e}, largest {max(divergences):.2e}, top-1 {top1:.1%}")
    # Where two experts score nearly alike, the noise may decide between them: a few positions then differ by more.
    assert mean < 4e-3 and max(divergences) < 0.4 and top1 > 0.93


def ids_of(rows):
    """The API names a token by its text, or where that is no whole character by its bytes. Token i here is byte i."""
    for row in rows:
        yield [(token_of(text), value) for text, value in row.items()]


def token_of(text):
    if text.startswith("bytes:"):
        return int(text[-2:], 16)
    byte, = text.encode()
    return byte
