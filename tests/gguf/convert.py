"""Writes a Hugging Face folder as GGUF with the `gguf` package, the way llama.cpp's converter lays models out: the
independent side of the reader's tests."""

import json
import math
import re
import struct
from pathlib import Path

import gguf
import numpy as np

OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}
INNER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
         "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
         "self_attn.kv_b_proj": "attn_kv_b", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp", "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
         "mlp.shared_experts.up_proj": "ffn_up_shexp", "mlp.shared_experts.down_proj": "ffn_down_shexp"}


def read_safetensors(path):
    """{name: array in FP32}"""
    data = Path(path).read_bytes()
    length, = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8:8 + length]).items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + n for n in entry["data_offsets"])
        raw = data[start:end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": np.float32, "F16": np.float16}[entry["dtype"]]).astype(np.float32)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def permute(rows, heads):
    """Llama's query and key rows, so that the halves of a rotated pair become neighbours."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def llama3_factors(config, rope):
    """What Llama 3.1's rule divides each frequency by."""
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    context = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(rope["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def rope_of(config):
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return rope


def write_metadata(writer, config, split_kv_b):
    rope, deepseek = rope_of(config), config["model_type"].startswith("deepseek")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if not deepseek:
        writer.add_head_count_kv(config["num_key_value_heads"])
        if "head_dim" in config:
            writer.add_key_length(config["head_dim"])
            writer.add_value_length(config["head_dim"])
        if "attn_factor" in rope:
            writer.add_rope_scaling_attn_factors(rope["attn_factor"])
        if "yarn_attn_factor" in rope:
            writer.add_rope_scaling_yarn_attn_factor(rope["yarn_attn_factor"])
        return
    rope_dim, nope, value = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
    latent = config["kv_lora_rank"]
    writer.add_rope_dimension_count(rope_dim)
    writer.add_kv_lora_rank(latent)
    if config.get("q_lora_rank"):
        writer.add_q_lora_rank(config["q_lora_rank"])
    if split_kv_b:
        writer.add_head_count_kv(1)
        writer.add_key_length(latent + rope_dim)
        writer.add_value_length(latent)
        writer.add_key_length_mla(nope + rope_dim)
        writer.add_value_length_mla(value)
    else:
        writer.add_head_count_kv(config["num_attention_heads"])
        writer.add_key_length(nope + rope_dim)
        writer.add_value_length(value)
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    sigmoid = config["model_type"] == "deepseek_v3"
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if sigmoid else gguf.ExpertGatingFuncType.SOFTMAX)
    writer.add_expert_group_count(config["n_group"] or 1)
    writer.add_expert_group_used_count(config["topk_group"] or 1)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])


def renamed(config, tensors, split_kv_b):
    """Pairs of GGUF name and array."""
    llama, heads = config["model_type"] == "llama", config["num_attention_heads"]
    stacks = {}
    for name, values in tensors.items():
        if name in OUTER:
            yield OUTER[name], values
            continue
        layer, rest = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name).groups()
        if int(layer) >= config["num_hidden_layers"]:
            continue  # MTP, which the converter leaves out
        prefix = f"blk.{layer}."
        if rest == "mlp.gate.e_score_correction_bias":
            yield prefix + "exp_probs_b.bias", values
            continue
        module, kind = rest.rsplit(".", 1)
        expert = re.fullmatch(r"mlp\.experts\.(\d+)\.(\w+)_proj", module)
        if expert:
            stacks.setdefault(f"{prefix}ffn_{expert[2]}_exps.weight", {})[int(expert[1])] = values
            continue
        if llama and module == "self_attn.q_proj":
            values = permute(values, heads)
        if llama and module == "self_attn.k_proj":
            values = permute(values, config["num_key_value_heads"])
        if module == "self_attn.kv_b_proj" and split_kv_b:
            parts = values.reshape(heads, config["qk_nope_head_dim"] + config["v_head_dim"], config["kv_lora_rank"])
            key, value = np.split(parts, [config["qk_nope_head_dim"]], axis=1)
            yield prefix + "attn_k_b.weight", np.ascontiguousarray(key.swapaxes(1, 2))
            yield prefix + "attn_v_b.weight", np.ascontiguousarray(value)
            continue
        yield f"{prefix}{INNER[module]}.{kind}", values
    for name, experts in stacks.items():
        yield name, np.stack([experts[e] for e in range(len(experts))])


def stored_type(name, values, wanted):
    """Vectors and routers stay FP32, as do rows that no block fits."""
    if values.ndim < 2 or "ffn_gate_inp" in name or values.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
        return gguf.GGMLQuantizationType.F32
    return wanted


def write_tokens(writer, vocab):
    """A vocabulary for random models, of at most 256 tokens: token i is byte i, as byte-level tokenizers spell it."""
    letters = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = {b: 0x100 + i for i, b in enumerate(b for b in range(256) if b not in letters)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([chr(shifted.get(b, b)) for b in range(vocab)])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def convert(config, tensors, path, kind="F32", split_kv_b=True, split_max_tensors=0):
    """Writes the GGUF at `path`; `kind` names the type of the matrices."""
    architecture = "deepseek2" if config["model_type"].startswith("deepseek") else config["model_type"]
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    write_metadata(writer, config, split_kv_b)
    write_tokens(writer, config["vocab_size"])
    wanted = gguf.GGMLQuantizationType[kind]
    if rope_of(config)["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config, rope_of(config)))
    for name, values in renamed(config, tensors, split_kv_b):
        dtype = stored_type(name, values, wanted)
        values = np.ascontiguousarray(values, np.float32)
        if dtype in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            writer.add_tensor(name, values.astype(np.float16 if dtype.name == "F16" else np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert_folder(folder, path, **options):
    folder = Path(folder)
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_safetensors(file)
    convert(json.loads((folder / "config.json").read_text()), tensors, path, **options)
