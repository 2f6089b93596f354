#!/usr/bin/env python3
"""What `shoal plan --cluster auto` predicts of this machine, beside what `shoal bench` measures on it, at once:

    perf/plan_validation.py [--ranks 1,2,4] [--precisions bf16,Q8_0] [--concurrency 1,4,16] > table.md

The model is one of R1's shape with 1.6 billion random parameters. Where ranks outnumber cores they take turns, which no
model of a step knows; such rows are marked and compare little. Needs 8 GB of memory and a machine that does nothing else."""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = Path(os.environ.get("SHOAL_BUILD", ROOT / "build")) / "shoal"
CONFIG = dict(
    model_type="deepseek_v3", hidden_size=2048, num_hidden_layers=8, first_k_dense_replace=1, intermediate_size=6144,
    moe_intermediate_size=512, n_routed_experts=64, n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4,
    num_attention_heads=16, num_key_value_heads=16, q_lora_rank=768, kv_lora_rank=512, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, vocab_size=32768, max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=10000,
    norm_topk_prob=True, scoring_func="sigmoid", topk_method="noaux_tc", routed_scaling_factor=2.5, moe_layer_freq=1,
    num_nextn_predict_layers=0, tie_word_embeddings=False, torch_dtype="bfloat16", attention_bias=False, eos_token_id=1)


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("ranks", "1,2,4"), ("precisions", "bf16,Q8_0"), ("concurrency", "1,4,16")):
        parser.add_argument("--" + name, default=default)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    prompt, output = 128, 32
    print("| ranks | precision | sequences | step ms, predicted | measured | ratio | prompts tokens/s, predicted | measured |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        model, cluster = Path(folder, "config.json"), Path(folder, "cluster.json")
        model.write_text(json.dumps(CONFIG))
        for ranks in map(int, options.ranks.split(",")):
            launcher = ["mpirun", "-n", ranks, BINARY]
            for precision in options.precisions.split(","):
                measured = run([*launcher, "bench", "--model", model, "--weights", "random", "--precision", precision,
                                "--compute", "bf16", "--concurrency", options.concurrency, "--prompt-tokens", prompt,
                                "--output-tokens", output, "--max-model-len", 512, "--quiet", "--json"])
                asked = ["plan", "--model", model, "--precision", precision, "--context", prompt + output, "--prompt", prompt,
                         "--json"]
                cluster.write_text(json.dumps(run([*launcher, *asked, "--cluster", "auto"])["cluster"]))
                for row in measured["results"]:
                    plan = run([BINARY, *asked, "--cluster", cluster, "--concurrency", row["concurrency"]])["prediction"]
                    print(f"| {ranks}{' *' if ranks > cores else ''} | {precision} | {row['concurrency']} | "
                          f"{plan['tpot_ms']:.1f} | {row['tpot_ms']:.1f} | {plan['tpot_ms'] / row['tpot_ms']:.2f} | "
                          f"{plan['prefill_tokens_per_s']:.0f} | {row['prefill_tokens_per_s']:.0f} |", flush=True)
    print(f"\n{cores} cores; * more ranks than cores.")


if __name__ == "__main__":
    main()
