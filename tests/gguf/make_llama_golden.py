#!/usr/bin/env python3
"""Writes tests/fixtures/gguf/: small random models, quantized by llama.cpp, and golden.json with what llama.cpp says
of some prompts. Needs llama-cpp-python (built from source); the test that reads the fixtures does not. With names of
models, only theirs are written anew.

golden.json: {file: {"prompts": [{"ids", "logprobs" (of ids[1:]), "top" ([[id, logprob] x 16] after each id)}]}}
"""

import ctypes
import json
import math
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from convert import convert

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "gguf"
VOCAB = 256
COMMON = dict(hidden_size=256, vocab_size=VOCAB, rms_norm_eps=1e-6, max_position_embeddings=1024)
MODELS = {
    "dense": dict(COMMON, model_type="llama", num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
                  intermediate_size=256, rope_theta=10000.0),
    # YaRN as in DeepSeek-R1-0528-Qwen3-8B, with another magnitude than the 1 that is left there.
    "qwen3": dict(COMMON, model_type="qwen3", num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=128,
                  intermediate_size=256, rope_theta=1000000.0,
                  rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, attn_factor=0.8)),
    "moe": dict(COMMON, model_type="deepseek_v3", num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                intermediate_size=256, moe_intermediate_size=256, n_routed_experts=4, n_shared_experts=1,
                num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=0, norm_topk_prob=True,
                routed_scaling_factor=2.5, q_lora_rank=256, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32,
                v_head_dim=64, rope_theta=10000.0,
                rope_scaling=dict(type="yarn", factor=8.0, original_max_position_embeddings=128, mscale=1.0,
                                  mscale_all_dim=1.0)),
}
# llama_ftype numbers; those that cannot do without an importance matrix get one.
TYPES = {"dense": {"Q6_K": 18, "Q2_K": 10, "IQ2_XXS": 19, "IQ1_S": 24}, "qwen3": {"Q4_K_M": 15},
         "moe": {"Q4_K_M": 15, "Q2_K": 10, "IQ2_XXS": 19, "IQ1_S": 24}}
LENGTHS = [24, 160]  # the second beyond the unscaled context


def random_weights(config, rng):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    tensors = {}

    def matrix(name, rows, cols, gain=1.0):
        tensors[name + ".weight"] = rng.standard_normal((rows, cols), np.float32) * np.float32(gain / math.sqrt(cols))

    def norm(name, size):
        tensors[name + ".weight"] = 1 + 0.2 * rng.standard_normal(size, np.float32)

    def ffn(prefix, width):
        matrix(prefix + "gate_proj", width, hidden)
        matrix(prefix + "up_proj", width, hidden)
        matrix(prefix + "down_proj", hidden, width)

    matrix("model.embed_tokens", VOCAB, hidden, math.sqrt(hidden))
    matrix("lm_head", VOCAB, hidden, 2.0)
    norm("model.norm", hidden)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        norm(p + "input_layernorm", hidden)
        norm(p + "post_attention_layernorm", hidden)
        if not config["model_type"].startswith("deepseek"):
            dim = config.get("head_dim", hidden // heads)
            matrix(p + "self_attn.q_proj", heads * dim, hidden, 1.4)
            matrix(p + "self_attn.k_proj", config["num_key_value_heads"] * dim, hidden, 1.4)
            matrix(p + "self_attn.v_proj", config["num_key_value_heads"] * dim, hidden)
            matrix(p + "self_attn.o_proj", hidden, heads * dim)
            if config["model_type"] == "qwen2":
                for name, rows in (("q", heads * dim), ("k", config["num_key_value_heads"] * dim),
                                   ("v", config["num_key_value_heads"] * dim)):
                    tensors[f"{p}self_attn.{name}_proj.bias"] = 0.3 * rng.standard_normal(rows, np.float32)
            if config["model_type"] == "qwen3":
                norm(p + "self_attn.q_norm", dim)
                norm(p + "self_attn.k_norm", dim)
            ffn(p + "mlp.", config["intermediate_size"])
            continue
        nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
        matrix(p + "self_attn.q_a_proj", config["q_lora_rank"], hidden)
        norm(p + "self_attn.q_a_layernorm", config["q_lora_rank"])
        matrix(p + "self_attn.q_b_proj", heads * (nope + rope), config["q_lora_rank"], 1.4)
        matrix(p + "self_attn.kv_a_proj_with_mqa", config["kv_lora_rank"] + rope, hidden, 1.4)
        norm(p + "self_attn.kv_a_layernorm", config["kv_lora_rank"])
        matrix(p + "self_attn.kv_b_proj", heads * (nope + value), config["kv_lora_rank"])
        matrix(p + "self_attn.o_proj", hidden, heads * value)
        matrix(p + "mlp.gate", config["n_routed_experts"], hidden, 4.0)
        tensors[p + "mlp.gate.e_score_correction_bias"] = 0.2 * rng.standard_normal(config["n_routed_experts"], np.float32)
        for expert in range(config["n_routed_experts"]):
            ffn(f"{p}mlp.experts.{expert}.", config["moe_intermediate_size"])
        ffn(p + "mlp.shared_experts.", config["moe_intermediate_size"])
    return tensors


def importance_of(path, rng):
    """A made-up importance for the inputs of every matrix."""
    entries, keep = [], []
    for tensor in gguf.GGUFReader(path).tensors:
        cols, experts = int(tensor.shape[0]), int(tensor.shape[2]) if len(tensor.shape) > 2 else 1
        values = np.exp(rng.standard_normal(cols * experts)).astype(np.float32)
        keep.append(values)
        entries.append(llama_cpp.llama_model_imatrix_data(
            tensor.name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size))
    entries.append(llama_cpp.llama_model_imatrix_data(None, None, 0))
    return (llama_cpp.llama_model_imatrix_data * len(entries))(*entries), keep


def quantize(source, target, number, importance):
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = number, 1
    if importance is not None:
        settings.imatrix = importance
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    assert code == 0, (target, code)


def log_probabilities(path, ids):
    model = llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, logits_all=True, verbose=False, type_k=0, type_v=0,
                            n_threads=1, flash_attn=False)
    model.eval(ids)
    logits = np.array(model.scores[:len(ids)], np.float64)
    model.close()
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    names = [a for a in sys.argv[1:] if a != "--keep"] or list(MODELS)
    said = OUT / "golden.json"
    golden = json.loads(said.read_text()) if said.exists() else {}
    for number, (name, config) in enumerate(MODELS.items()):
        if name not in names:
            continue
        rng = np.random.default_rng(number)
        source = OUT / f"{name}-F32.gguf"
        convert(config, random_weights(config, rng), source)
        prompts = [rng.integers(2, VOCAB, n).tolist() for n in LENGTHS]
        importance, keep = importance_of(source, rng)
        for kind, code in TYPES[name].items():
            path = OUT / f"{name}-{kind}.gguf"
            quantize(source, path, code, importance if kind.startswith("IQ") else None)
            stored = []
            for ids in prompts:
                table = log_probabilities(path, ids)
                top = np.argsort(-table, axis=-1, kind="stable")[:, :16]
                stored.append({"ids": ids, "logprobs": [round(table[i, t], 4) for i, t in enumerate(ids[1:])],
                               "top": [[[int(t), round(table[i, t], 4)] for t in row] for i, row in enumerate(top)]})
            golden[path.name] = {"prompts": stored}
            types = sorted({t.tensor_type.name for t in gguf.GGUFReader(path).tensors})
            print(f"{path.name}: {path.stat().st_size} bytes, {', '.join(types)}", file=sys.stderr)
        if "--keep" not in sys.argv:
            source.unlink()
    said.write_text(json.dumps(golden, separators=(",", ":")).replace('{"ids"', '\n{"ids"') + "\n")


if __name__ == "__main__":
    main()
