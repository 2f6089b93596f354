#!/usr/bin/env python3
"""Random models made on the spot, served on 1 to 4 ranks, against transformers in FP32 on the same BF16 weights.

    tests/golden/check_served.py [--seed N] [--ranks 1 2 3 4] [--families NAME…] [--tolerance 0.05]

Sends prompts of 5 to 700 token ids to /v1/completions (`echo`, `logprobs`), compares every token's log-probability and
prints the largest difference of each family and rank count. Needs torch and transformers; without them it exits with 77,
skipped. Unlike the committed fixtures the models differ from run to run, and are larger.
"""

import argparse
import random
import sys
import tempfile

try:
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error.name} is not installed")
    sys.exit(77)

from random_models import (deepseek_v2, deepseek_v3, llama, load_reference, log_probabilities, qwen2, qwen3, random_prompt,
                           write_model, yarn)
from serving import largest_difference, prompt_logprobs, serve

LENGTHS = (5, 6, 17, 90, 257, 700)


def families(rng):
    """Name → (configuration, how it is stored); sizes vary with the seed."""
    hidden, heads = rng.choice([96, 128, 160]), rng.choice([4, 8])
    common = dict(hidden=hidden, heads=heads, layers=rng.choice([3, 4]), vocab=rng.choice([320, 500]))
    wide = dict(expert_width=rng.choice([40, 48, 64]), **common)
    heads_64 = dict(common, hidden=heads * 32)
    return {
        "deepseek_v3": (deepseek_v3(experts=16, q_lora=48, top_k=4, dense_layers=1, **wide), {}),
        "deepseek_v3, original spelling": (
            deepseek_v3(experts=32, groups=8, topk_group=4, top_k=8, q_lora=40, nope=32, rope_dim=16, v=32, kv_lora=64,
                        rope=yarn(factor=40.0, original=64), **wide), dict(original=True, mtp=True, bias_f32=True)),
        "deepseek_v3 without q_lora": (
            deepseek_v3(experts=32, q_lora=None, top_k=6, rope=dict(rope_type="default", rope_theta=10000.0), **wide),
            {}),
        "deepseek_v3 FP8": (deepseek_v3(experts=16, q_lora=144, hidden=192, expert_width=136, layers=3),
                            dict(original=True, fp8=True, bias_f32=True)),
        "deepseek_v2": (deepseek_v2(experts=16, q_lora=48, top_k=4, scale=2.0, **wide), dict(original=True)),
        "deepseek_v2 lite": (
            deepseek_v2(experts=32, q_lora=None, method="greedy", groups=1, topk_group=1, top_k=6, **wide), {}),
        "qwen2": (qwen2(kv_heads=2, **heads_64), dict(original=True)),
        "qwen2 tied": (qwen2(kv_heads=1, tied=True, **heads_64), {}),
        "qwen3": (qwen3(kv_heads=2, rope=dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, attn_factor=0.9,
                                              original_max_position_embeddings=128), **common), dict(original=True)),
        "qwen3 tied": (qwen3(kv_heads=1, tied=True, bias=True, **common), {}),
        "llama 3": (llama(kv_heads=2, **heads_64), {}),
        "deepseek v1": (llama(kv_heads=4, scaled=False, **heads_64), dict(original=True)),
    }


def difference(server, prompts, expected, rng):
    """The largest difference over all prompts, sent one by one, some with a token generated behind them."""
    worst = 0.0
    for ids, want in zip(prompts, expected, strict=True):
        choice, = server.complete(ids, echo=True, logprobs=rng.choice([0, 1]), max_tokens=rng.choice([0, 1]))
        worst = max(worst, largest_difference(prompt_logprobs(choice, ids), want))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--families", nargs="+")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--serve-options", default="", help="further options of shoal serve, as one word")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rng = random.Random(arguments.seed)
    print(f"seed {arguments.seed}")
    failed = False
    for number, (name, (config, storage)) in enumerate(families(rng).items()):
        if arguments.families and name not in arguments.families:
            continue
        with tempfile.TemporaryDirectory() as folder:
            restored = write_model(folder, config, arguments.seed + number, **storage)
            model = load_reference(folder, restored)
            generator = torch.Generator().manual_seed(arguments.seed + number)
            prompts = [random_prompt(generator, n, config["vocab_size"]) for n in LENGTHS]
            expected = [log_probabilities(model, p)[:-1].gather(1, torch.tensor(p[1:])[:, None])[:, 0].tolist()
                        for p in prompts]
            found = {}
            for ranks in arguments.ranks:
                with serve(folder, ranks, *arguments.serve_options.split()) as server:
                    found[ranks] = difference(server, prompts, expected, rng)
        bad = max(found.values()) > arguments.tolerance
        failed |= bad
        print(f"{name:32}" + "  ".join(f"n={n}: {d:.2g}" for n, d in found.items()) + ("  TOO LARGE" if bad else ""),
              flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
