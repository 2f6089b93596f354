"""Small random checkpoints of every model family Shoal reads, and their reference values from transformers.

Every linear layer is drawn with a variance that keeps activations near one and spreads the logits over several nats, so
that a wrong scale, a skipped bias or a token sent to the wrong expert moves log-probabilities far beyond the tolerance.
"""

import copy
import json
import math
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

FP8_BLOCK = 128


def yarn(original=128, factor=8.0, mscale=1.0, mscale_all_dim=1.0):
    """DeepSeek's rotary scaling; `original` is small, so that tests reach far beyond it."""
    return dict(rope_type="yarn", rope_theta=10000.0, factor=factor, original_max_position_embeddings=original,
                beta_fast=32, beta_slow=1, mscale=mscale, mscale_all_dim=mscale_all_dim)


def deepseek_v3(experts=8, q_lora=24, hidden=64, layers=2, heads=4, groups=4, topk_group=2, top_k=3, expert_width=32,
                shared=1, vocab=256, dense_layers=1, rope=None, nope=16, rope_dim=8, v=16, kv_lora=32, context=1024):
    return dict(model_type="deepseek_v3", vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden + 32,
                moe_intermediate_size=expert_width, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=heads, n_shared_experts=shared, n_routed_experts=experts, kv_lora_rank=kv_lora,
                q_lora_rank=q_lora, qk_rope_head_dim=rope_dim, v_head_dim=v, qk_nope_head_dim=nope, n_group=groups,
                topk_group=topk_group, num_experts_per_tok=top_k, first_k_dense_replace=dense_layers,
                norm_topk_prob=True, routed_scaling_factor=2.5, max_position_embeddings=context,
                rope_parameters=rope or yarn(), num_mtp_layers=0)


def deepseek_v2(experts=8, q_lora=24, method="group_limited_greedy", groups=4, topk_group=2, top_k=3, hidden=64,
                layers=2, heads=4, expert_width=32, shared=2, vocab=256, scale=1.0, context=1024, rope=None):
    return dict(model_type="deepseek_v2", vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden,
                moe_intermediate_size=expert_width, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=heads, n_shared_experts=shared, n_routed_experts=experts, kv_lora_rank=32,
                q_lora_rank=q_lora, qk_rope_head_dim=8, v_head_dim=16, qk_nope_head_dim=16, n_group=groups,
                topk_group=topk_group, topk_method=method, num_experts_per_tok=top_k, first_k_dense_replace=1,
                norm_topk_prob=False, routed_scaling_factor=scale, max_position_embeddings=context,
                rope_parameters=rope or yarn(mscale=0.707, mscale_all_dim=0.707))


def qwen2(hidden=64, layers=2, heads=4, kv_heads=2, vocab=256, tied=False, context=1024):
    return dict(model_type="qwen2", vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden + 48,
                num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                tie_word_embeddings=tied, max_position_embeddings=context, rms_norm_eps=1e-6,
                rope_parameters=dict(rope_type="default", rope_theta=1000000.0))


def qwen3(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=32, vocab=256, tied=False, bias=False, rope=None, context=1024):
    """Heads that are wider together than the model, as in Qwen3's smaller ones."""
    return dict(model_type="qwen3", vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden + 48,
                num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
                tie_word_embeddings=tied, attention_bias=bias, max_position_embeddings=context, rms_norm_eps=1e-6,
                rope_parameters=rope or dict(rope_type="default", rope_theta=1000000.0))


def llama(hidden=64, layers=2, heads=4, kv_heads=2, vocab=256, scaled=True, context=1024):
    rope = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=128)
    return dict(model_type="llama", vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden + 16,
                num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                max_position_embeddings=context, rms_norm_eps=1e-5,
                rope_parameters=rope if scaled else dict(rope_type="default", rope_theta=10000.0))


def randomize(model, generator, logit_std=2.0):
    """Draws every parameter anew: unit-variance linear layers, norms around one, a router whose bias matters."""

    def normal(tensor, std, mean=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
            if name.endswith("inv_freq"):
                continue
            if "norm" in name:
                normal(tensor, 0.2, 1.0)
            elif name.endswith("e_score_correction_bias"):
                normal(tensor, 0.2)
            elif name.endswith(".bias"):
                normal(tensor, 0.5)
            elif "embed_tokens" in name:
                # A tied table is the output projection too, so its scale sets the logits'.
                normal(tensor, logit_std / math.sqrt(tensor.shape[1]) if model.config.tie_word_embeddings else 1.0)
            elif "lm_head" in name:
                normal(tensor, logit_std / math.sqrt(tensor.shape[-1]))
            elif any(part in name for part in ("q_proj", "q_b_proj", "k_proj", "kv_a_proj")):
                normal(tensor, 1.4 / math.sqrt(tensor.shape[-1]))  # attention that is far from uniform
            else:
                normal(tensor, 1.0 / math.sqrt(tensor.shape[-1]))


def quantize_fp8(weight):
    """DeepSeek-V3's storage: float8_e4m3fn with one FP32 scale (`weight_scale_inv`) for a 128x128 block.

    Returns the quantized weight, the scales [ceil(rows/128), ceil(cols/128)] and what they stand for in FP32.
    """
    rows, cols = weight.shape
    scales = torch.empty(math.ceil(rows / FP8_BLOCK), math.ceil(cols / FP8_BLOCK))
    quantized, restored = torch.empty(rows, cols, dtype=torch.float8_e4m3fn), torch.empty(rows, cols)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = (slice(i * FP8_BLOCK, (i + 1) * FP8_BLOCK), slice(j * FP8_BLOCK, (j + 1) * FP8_BLOCK))
            part = weight[block].float()
            scales[i, j] = part.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            quantized[block] = (part / scales[i, j]).to(torch.float8_e4m3fn)
            restored[block] = quantized[block].float() * scales[i, j]
    return quantized, scales, restored


def add_mtp_layer(tensors, layers, generator):
    """Appends a multi-token-prediction layer as DeepSeek-V3 stores it: one more decoder layer and its own parts."""
    last, extra = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    for name in [n for n in tensors if n.startswith(last)]:
        noise = torch.randn(tensors[name].shape, generator=generator) * 0.1
        tensors[extra + name[len(last):]] = (tensors[name].float() + noise).to(tensors[name].dtype)
    hidden = tensors["model.norm.weight"].shape[0]
    tensors[extra + "enorm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    tensors[extra + "hnorm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    tensors[extra + "eh_proj.weight"] = torch.randn(hidden, 2 * hidden, generator=generator).to(torch.bfloat16)
    tensors[extra + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[extra + "shared_head.norm.weight"] = tensors["model.norm.weight"].clone()
    tensors[extra + "shared_head.head.weight"] = tensors["lm_head.weight"].clone()


def original_spelling(folder, **more):
    """Rewrites `config.json` as DeepSeek and Qwen publish theirs: `rope_theta` beside `rope_scaling`, `torch_dtype`."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    # Llama 3.1 itself spells it `rope_type`; DeepSeek `type`.
    key = "rope_type" if kind == "llama3" else "type"
    config["rope_scaling"] = None if kind == "default" else {key: kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "deepseek_v3":
        config.update(topk_method="noaux_tc", scoring_func="sigmoid", moe_layer_freq=1, ep_size=1)
    elif config["model_type"] == "deepseek_v2":
        config.update(scoring_func="softmax", moe_layer_freq=1, ep_size=1)
    implied = ["head_dim"] if config["model_type"] != "qwen3" else []
    for name in ["transformers_version", "qk_head_dim", "rope_interleave", *implied]:
        config.pop(name, None)
    config.update(more)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_model(folder, config, seed, dtype=torch.bfloat16, original=False, mtp=False, fp8=False, bias_f32=False,
                max_shard_size="1GB"):
    """Writes one random checkpoint. Returns the FP32 weights it stands for when they differ from what is stored (FP8)."""
    folder, generator = Path(folder), torch.Generator().manual_seed(seed)
    config = dict(config)
    # No token ends a sequence by itself unless a caller says so: vocabularies here have no meaning.
    auto = AutoConfig.for_model(config.pop("model_type"), **config, bos_token_id=0, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(auto).float()
    randomize(model, generator)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    single, restored = folder / "model.safetensors", None
    if mtp or fp8 or bias_f32:
        tensors = load_file(single)
        if bias_f32:  # as DeepSeek publishes it
            tensors = {n: t.float() if n.endswith("e_score_correction_bias") else t for n, t in tensors.items()}
        if mtp:
            add_mtp_layer(tensors, auto.num_hidden_layers, generator)
        if fp8:
            restored = {}
            for name in [n for n in tensors if n.endswith("_proj.weight") or "kv_a_proj" in n]:
                tensors[name], scales, restored[name] = quantize_fp8(tensors[name])
                tensors[name + "_scale_inv"] = scales
        save_file(tensors, single, metadata={"format": "pt"})
    if original:
        more = {"num_nextn_predict_layers": 1} if mtp else {}
        if fp8:
            more["quantization_config"] = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8",
                                               weight_block_size=[FP8_BLOCK, FP8_BLOCK])
        original_spelling(folder, **more)
    return restored


def honour_attn_factor(config):
    """`attn_factor`, with which DeepSeek published its Qwen3, as vLLM and SGLang take it: it multiplies the magnitude that
    YaRN computes. transformers does not know it, but `attention_factor`, which stands in for that magnitude."""
    rope = config.rope_parameters
    if "attn_factor" in rope:
        rope["attention_factor"] = rope.pop("attn_factor") * (0.1 * math.log(rope["factor"]) + 1)
    return config


def load_reference(folder, restored=None):
    """The checkpoint in transformers, in FP32; `restored` replaces the weights of a quantized one."""
    with tempfile.TemporaryDirectory() as plain:
        if restored is not None:
            stored = load_file(Path(folder) / "model.safetensors")
            save_file({n: t.float() for n, t in stored.items() if not n.endswith("_scale_inv")} | restored,
                      Path(plain) / "model.safetensors", metadata={"format": "pt"})
            config = json.loads((Path(folder) / "config.json").read_text())
            del config["quantization_config"]
            (Path(plain) / "config.json").write_text(json.dumps(config))
            folder = plain
        model = AutoModelForCausalLM.from_pretrained(folder, config=honour_attn_factor(AutoConfig.from_pretrained(folder)),
                                                     dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def log_probabilities(model, ids):
    """[len(ids), vocab]: row i is the distribution of token i + 1."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)


@torch.no_grad()
def mtp_log_probabilities(model, folder, ids):
    """[len(ids) - 1, vocab]: row i is what the MTP layer, seeing ids[i + 1], says of token i + 2.

    transformers leaves that layer aside; it is one of its own decoder layers behind a projection of the next token's
    embedding joined with the last hidden state, which serving engines take after the final norm.
    """
    config, stored = model.config, load_file(Path(folder) / "model.safetensors")
    prefix = f"model.layers.{config.num_hidden_layers}."
    part = {n[len(prefix):]: t.float() for n, t in stored.items() if n.startswith(prefix)}
    layer = copy.deepcopy(model.model.layers[-1])
    weights = {n: t for n, t in part.items() if n.startswith(("self_attn.", "input_layernorm", "post_attention")) or
               (n.startswith("mlp.") and ".experts." not in n)}
    experts = layer.mlp.experts
    for e in range(config.n_routed_experts):
        gate, up, down = (part[f"mlp.experts.{e}.{k}_proj.weight"] for k in ("gate", "up", "down"))
        experts.gate_up_proj[e].copy_(torch.cat((gate, up)))
        experts.down_proj[e].copy_(down)
    missing, unexpected = layer.load_state_dict(weights, strict=False)
    assert not unexpected and all(".experts." in n for n in missing), (missing, unexpected)

    def norm(x, weight):
        return torch.nn.functional.rms_norm(x, weight.shape, weight, config.rms_norm_eps)

    tokens = torch.tensor([ids])
    hidden = model.model(tokens).last_hidden_state[:, :-1]
    embedded = model.model.embed_tokens(tokens[:, 1:])
    joined = torch.cat((norm(embedded, part["enorm.weight"]), norm(hidden, part["hnorm.weight"])), -1)
    x = joined @ part["eh_proj.weight"].T
    positions = torch.arange(x.shape[1])[None]
    mask = torch.full((1, 1, x.shape[1], x.shape[1]), float("-inf")).triu(1)
    x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=model.model.rotary_emb(x, positions))
    x = norm(x[0] if isinstance(x, tuple) else x, part["shared_head.norm.weight"])
    return torch.log_softmax(model.lm_head(x).reshape(len(ids) - 1, -1), dim=-1)


def greedy(model, ids, count, margin=0.02):
    """Greedy continuation; ends early where two tokens are within `margin` nats, as rounding could decide there."""
    ids, out, probabilities = list(ids), [], []
    for _ in range(count):
        top = log_probabilities(model, ids)[-1].topk(2)
        if top.values[0] - top.values[1] < margin:
            break
        out.append(int(top.indices[0]))
        probabilities.append(float(top.values[0]))
        ids.append(out[-1])
    return out, probabilities


def random_prompt(generator, length, vocab):
    """Token ids that are neither beginning nor end of text."""
    return torch.randint(2, vocab, (length,), generator=generator).tolist()
