#!/usr/bin/env python3
"""Writes tests/fixtures/models/<name>/: tiny random checkpoints, each with golden.json from transformers in FP32.

Needs torch, transformers and safetensors; the tests that read the fixtures need none of them.
golden.json: {"prompts": [{"ids", "logprobs" (of ids[1:]), "top5" (list of [position, [[id, logprob] x 5]]),
"greedy", "greedy_logprobs", "mtp_logprobs" (of ids[2:], from the MTP layer)}]}; position p of `top5` describes the token
after ids[p].
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from random_models import (deepseek_v2, deepseek_v3, greedy, llama, load_reference, log_probabilities,
                           mtp_log_probabilities, qwen2, qwen3, random_prompt, write_model, yarn)

FIXTURES = Path(__file__).parent.parent / "fixtures" / "models"
LENGTHS = [1, 2, 5, 17, 64, 200, 330]  # the rotary scalings above start from 128 positions

MODELS = {
    # What transformers itself writes: one tensor an expert, `rope_parameters`, num_nextn_predict_layers without MTP.
    "deepseek-v3": dict(config=deepseek_v3(experts=12, expert_width=24), seed=1),
    "deepseek-v3-no-q-lora": dict(config=deepseek_v3(experts=16, q_lora=None, expert_width=16, top_k=4), seed=2),
    # As DeepSeek publishes R1: `rope_scaling`, FP32 correction bias, an MTP layer behind the last one.
    "deepseek-v3-mtp": dict(config=deepseek_v3(experts=8, expert_width=16, rope=yarn(mscale_all_dim=0.8)), seed=3, original=True,
                            mtp=True, bias_f32=True),
    # 144 and 136 are not multiples of 128: partial scale blocks at both edges.
    "deepseek-v3-fp8": dict(config=deepseek_v3(experts=4, groups=2, topk_group=1, top_k=2, hidden=144, vocab=192,
                                               q_lora=136, expert_width=144), seed=4, original=True, fp8=True,
                            bias_f32=True),
    "deepseek-v3-sharded": dict(config=deepseek_v3(rope=dict(rope_type="default", rope_theta=10000.0)), seed=5,
                                max_shard_size="100KB"),
    "deepseek-v2": dict(config=deepseek_v2(scale=4.0, expert_width=24), seed=6, original=True),
    "deepseek-v2-lite": dict(config=deepseek_v2(q_lora=None, method="greedy", groups=1, topk_group=1), seed=7,
                             original=True),
    "qwen2": dict(config=qwen2(), seed=8, original=True),
    "qwen2-tied": dict(config=qwen2(tied=True, heads=8, kv_heads=2), seed=9),
    # As DeepSeek publishes R1-0528-Qwen3-8B, whose attn_factor leaves a magnitude of 1; here it is of 1.02.
    "qwen3": dict(config=qwen3(rope=dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, attn_factor=0.9,
                                         original_max_position_embeddings=128)), seed=13, original=True),
    "qwen3-tied": dict(config=qwen3(tied=True, bias=True, layers=1, heads=6, kv_heads=3, vocab=160), seed=14,
                       dtype=torch.float32),
    "llama3": dict(config=llama(), seed=10, original=True),
    "llama3-f32": dict(config=llama(kv_heads=1, layers=1, vocab=160), seed=11, dtype=torch.float32),
    # DeepSeek V1: Llama without rotary scaling; 67B has grouped queries, 7B has not.
    "deepseek-v1": dict(config=llama(heads=8, kv_heads=8, scaled=False), seed=12, original=True),
}


def golden(model, vocab, seed, mtp_folder=None):
    """Reference values for one model over prompts of all lengths."""
    generator, prompts = torch.Generator().manual_seed(1000 + seed), []
    for length in LENGTHS:
        ids = random_prompt(generator, length, vocab)
        table = log_probabilities(model, ids)
        positions = sorted({0, length // 2, length - 1})
        top = [table[p].topk(5) for p in positions]
        prompt = {
            "ids": ids,
            "logprobs": [round(float(table[i, ids[i + 1]]), 5) for i in range(length - 1)],
            "top5": [[p, [[int(i), round(float(v), 5)] for v, i in zip(t.values, t.indices)]]
                     for p, t in zip(positions, top)],
        }
        if length <= 200:
            tokens, probabilities = greedy(model, ids, 16)
            prompt |= {"greedy": tokens, "greedy_logprobs": [round(p, 5) for p in probabilities]}
        if mtp_folder and length > 2:
            ahead = mtp_log_probabilities(model, mtp_folder, ids)
            prompt["mtp_logprobs"] = [round(float(ahead[i, ids[i + 2]]), 5) for i in range(length - 2)]
        prompts.append(prompt)
    return {"prompts": prompts}


def main():
    transformers.logging.set_verbosity_error()  # it reports the MTP layer it ignores
    for name in sys.argv[1:] or MODELS:
        settings, folder = MODELS[name], FIXTURES / name
        shutil.rmtree(folder, ignore_errors=True)
        restored = write_model(folder, **settings)
        model = load_reference(folder, restored)
        values = golden(model, settings["config"]["vocab_size"], settings["seed"], folder if settings.get("mtp") else None)
        text = json.dumps(values, separators=(",", ":")).replace('{"ids"', '\n{"ids"')
        (folder / "golden.json").write_text(text + "\n")
        size = sum(f.stat().st_size for f in folder.iterdir()) // 1024
        spread = max(values["prompts"][-1]["logprobs"]) - min(values["prompts"][-1]["logprobs"])
        print(f"{name}: {size} KB, log-probabilities spread over {spread:.1f} nats, greedy "
              f"{[len(p.get('greedy', [])) for p in values['prompts']]}")


if __name__ == "__main__":
    main()
