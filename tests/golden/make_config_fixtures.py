#!/usr/bin/env python3
"""Writes tests/fixtures/model_configs.json: configurations in the spellings they are published in, and in the one that
transformers saves them in, each with the settings, rotary frequencies and softmax scale that transformers derives.

Needs torch and transformers 5; the tests that read the fixtures need neither. No weights are made or downloaded.
"""

import copy
import json
import logging
from pathlib import Path

import torch
import transformers
from random_models import honour_attn_factor
from transformers import CONFIG_MAPPING
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

OUT = Path(__file__).parent.parent / "fixtures" / "model_configs.json"

CLASSES = {
    "deepseek_v3": (DeepseekV3Attention, DeepseekV3RotaryEmbedding),
    "deepseek_v2": (DeepseekV2Attention, DeepseekV2RotaryEmbedding),
    "qwen2": (Qwen2Attention, Qwen2RotaryEmbedding),
    "qwen3": (Qwen3Attention, Qwen3RotaryEmbedding),
    "llama": (LlamaAttention, LlamaRotaryEmbedding),
}

R1 = {
    "model_type": "deepseek_v3", "attention_bias": False, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
    "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
    "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280,
}

V2_LITE = {
    "model_type": "deepseek_v2", "attention_bias": False, "bos_token_id": 100000, "eos_token_id": 100001,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
    "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "tie_word_embeddings": False,
    "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 102400,
}

V2 = V2_LITE | {
    "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "n_group": 8,
    "n_routed_experts": 160, "num_attention_heads": 128, "num_hidden_layers": 60, "num_key_value_heads": 128,
    "q_lora_rank": 1536, "routed_scaling_factor": 16.0, "topk_group": 3, "topk_method": "group_limited_greedy",
}

DISTILL_QWEN = {
    "model_type": "qwen2", "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False,
    "vocab_size": 152064,
}

DISTILL_QWEN3 = {
    "model_type": "qwen3", "attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 131072,
    "max_window_layers": 36, "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
                     "attn_factor": 0.8782488562869419},
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_sliding_window": False, "vocab_size": 151936,
}

DISTILL_LLAMA = {
    "model_type": "llama", "attention_bias": False, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 8192, "intermediate_size": 28672,
    "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 64, "num_hidden_layers": 80,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128256,
}

V1_67B = {
    "model_type": "llama", "bos_token_id": 100000, "eos_token_id": 100001, "hidden_act": "silu", "hidden_size": 8192,
    "intermediate_size": 22016, "max_position_embeddings": 4096, "num_attention_heads": 64, "num_hidden_layers": 95,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 102400,
}

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def without(config, *keys):
    return {k: v for k, v in config.items() if k not in keys}


CASES = {
    "deepseek-r1": R1,
    "deepseek-r1 without scaling": R1 | {"rope_scaling": None},
    "deepseek-v3 that says little": without(
        R1, "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "first_k_dense_replace",
        "n_shared_experts", "q_lora_rank", "rms_norm_eps", "rope_theta", "rope_scaling", "scoring_func", "topk_method",
        "max_position_embeddings", "num_key_value_heads", "num_nextn_predict_layers", "bos_token_id", "eos_token_id",
        "moe_layer_freq", "quantization_config", "tie_word_embeddings"),
    "deepseek-v3 yarn with unequal mscale": R1 | {"rope_scaling": R1["rope_scaling"] | {"mscale_all_dim": 0.5}},
    "deepseek-v3 yarn without mscale": R1 | {"rope_scaling": without(R1["rope_scaling"], "mscale", "mscale_all_dim")},
    "deepseek-v3 yarn with zero mscale_all_dim": R1 | {"rope_scaling": R1["rope_scaling"] | {"mscale_all_dim": 0}},
    "deepseek-v3 linear with mscale_all_dim":
        R1 | {"rope_scaling": {"rope_type": "linear", "factor": 4, "mscale_all_dim": 1.0}},
    "deepseek-v2-lite": V2_LITE,
    "deepseek-v2": V2,
    "deepseek-v2 that says little": without(
        V2, "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "first_k_dense_replace",
        "n_shared_experts", "topk_method", "scoring_func", "rope_scaling", "max_position_embeddings", "bos_token_id",
        "eos_token_id", "q_lora_rank"),
    "deepseek-llm-67b": V1_67B,
    "deepseek-coder-33b": V1_67B | {
        "hidden_size": 7168, "intermediate_size": 19200, "num_attention_heads": 56, "num_hidden_layers": 62,
        "max_position_embeddings": 16384, "rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100000,
        "vocab_size": 32256, "bos_token_id": 32013, "eos_token_id": 32014},
    "r1-distill-qwen-7b": DISTILL_QWEN,
    "qwen2 yarn": DISTILL_QWEN | {"rope_scaling": YARN, "rope_theta": 1000000.0},
    "qwen2 yarn not truncated": DISTILL_QWEN | {"rope_scaling": YARN | {"truncate": False, "beta_fast": 16}},
    "qwen2 yarn with attention_factor": DISTILL_QWEN | {"rope_scaling": YARN | {"attention_factor": 1.25}},
    "qwen2 yarn from the context length":
        DISTILL_QWEN | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "max_position_embeddings": 40960},
    "r1-0528-qwen3-8b": DISTILL_QWEN3,
    "qwen3 that says little": without(
        DISTILL_QWEN3, "head_dim", "rope_scaling", "num_key_value_heads", "max_position_embeddings", "attention_bias",
        "eos_token_id") | {"num_attention_heads": 64},
    "r1-distill-llama-70b": DISTILL_LLAMA,
    "llama that says little": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32,
        "num_hidden_layers": 22, "vocab_size": 32000},
    "llama with wide heads and biases": {
        "model_type": "llama", "hidden_size": 160, "intermediate_size": 320, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 500, "head_dim": 64, "attention_bias": True,
        "tie_word_embeddings": True, "rope_theta": 12345},
}

# What ModelConfig and the config classes both call by the same name.
INTEGERS = ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads",
            "max_position_embeddings"]
LATENT = ["kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts", "n_shared_experts",
          "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace"]


def derived(config):
    attention, rotary = CLASSES[config.model_type]
    with torch.device("cpu"):
        rope = rotary(config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        scaling = attention(config, 0).scaling
    eos = config.eos_token_id
    facts = {name: getattr(config, name) for name in INTEGERS}
    if config.model_type.startswith("deepseek"):
        facts |= {name: getattr(config, name) for name in LATENT}
        facts["q_lora_rank"] = config.q_lora_rank or 0
    else:
        facts["num_key_value_heads"] = config.num_key_value_heads
        facts["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type == "deepseek_v3":
        facts |= {"n_group": config.n_group, "topk_group": config.topk_group,
                  "num_nextn_predict_layers": config.num_nextn_predict_layers}
    return {
        "integers": facts,
        "eos_token_ids": [] if eos is None else eos if isinstance(eos, list) else [eos],
        "bos_token_id": config.bos_token_id,
        "rms_norm_eps": config.rms_norm_eps,
        "routed_scaling_factor": getattr(config, "routed_scaling_factor", 1.0),
        "norm_topk_prob": getattr(config, "norm_topk_prob", False),
        "tie_word_embeddings": config.tie_word_embeddings,
        "inv_freq": rope.inv_freq.tolist(),
        "magnitude": rope.attention_scaling,
        "attention_scale": scaling,
    }


def main():
    logging.disable(logging.WARNING)
    cases = []
    for name, published in CASES.items():
        config = CONFIG_MAPPING[published["model_type"]].from_dict(copy.deepcopy(published))
        expected = derived(honour_attn_factor(copy.deepcopy(config)))
        saved = json.loads(config.to_json_string())
        saved.pop("_attn_implementation_autoset", None)
        cases.append({"name": name, "published": published, "saved": saved, "expected": expected})
    fixture = {"transformers": transformers.__version__, "cases": cases}
    # One line a case keeps differences readable without a line for each frequency.
    lines = ",\n".join(json.dumps(case) for case in cases)
    OUT.write_text(f'{{"transformers": "{fixture["transformers"]}", "cases": [\n{lines}\n]}}\n')
    print(f"{OUT}: {len(cases)} configurations")


if __name__ == "__main__":
    main()
