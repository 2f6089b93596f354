"""Exports a checkpoint as a DeepSeek-R1 model folder, in BF16 and in R1's FP8 form."""

import argparse
import json
import os
import pathlib
import shutil
import tempfile

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import problems
import tokenizer as tokens
from model import Config, DeepSeek, published_tensors

HERE = pathlib.Path(__file__).parent
BLOCK = 128
FP8_MAX = 448.0


def quantized(name: str) -> bool:
    """Whether R1 stores this tensor as FP8: every projection but the MTP layer's input one."""
    return "_proj" in name and "eh_proj" not in name


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values and the factor of each 128x128 block that restores them."""
    rows, columns = weight.shape
    padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK)
    padded[:rows, :columns] = weight.float()
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    factor = blocks.abs().amax((1, 3)).clamp(min=1e-12) / FP8_MAX
    values = (blocks / factor[:, None, :, None]).flatten(2).flatten(0, 1)[:rows, :columns]
    return values.to(torch.float8_e4m3fn).contiguous(), factor


def dequantize(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    rows, columns = values.shape
    full = factor.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return values.float() * full


def config_json(config: Config, fp8: bool) -> dict:
    """config.json in DeepSeek's own spelling."""
    result = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "first_k_dense_replace": config.first_k_dense_replace,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "kv_lora_rank": config.kv_lora_rank,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": config.moe_intermediate_size,
        "moe_layer_freq": 1,
        "n_group": config.n_group,
        "n_routed_experts": config.n_routed_experts,
        "n_shared_experts": config.n_shared_experts,
        "norm_topk_prob": True,
        "num_attention_heads": config.num_attention_heads,
        "num_experts_per_tok": config.num_experts_per_tok,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_attention_heads,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": config.q_lora_rank,
        "qk_nope_head_dim": config.qk_nope_head_dim,
        "qk_rope_head_dim": config.qk_rope_head_dim,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        },
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": int(config.rope_beta_fast),
            "beta_slow": int(config.rope_beta_slow),
            "factor": int(config.rope_factor),
            "mscale": config.rope_mscale,
            "mscale_all_dim": config.rope_mscale,
            "original_max_position_embeddings": config.rope_original_positions,
            "type": "yarn",
        },
        "rope_theta": int(config.rope_theta),
        "routed_scaling_factor": config.routed_scaling_factor,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": config.topk_group,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": config.v_head_dim,
        "vocab_size": config.vocab_size,
    }
    if not fp8:
        del result["quantization_config"]
    return result


def tokenizer_config_json() -> dict:
    def special(text: str) -> dict:
        return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True,
                "rstrip": False, "single_word": False}

    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": special(tokens.BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": special(tokens.EOS),
        "legacy": True,
        "model_max_length": 4096,
        "pad_token": special(tokens.PAD),
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": (HERE / "chat_template.jinja").read_text().rstrip("\n"),
    }


def folder_tensors(model: DeepSeek, fp8: bool) -> dict[str, torch.Tensor]:
    """The tensors of model.safetensors."""
    result = {}
    for name, value in published_tensors(model).items():
        if name.endswith("e_score_correction_bias"):
            result[name] = value.float()
        elif fp8 and quantized(name):
            result[name], result[f"{name}_scale_inv"] = quantize(value.bfloat16())
        else:
            result[name] = value.bfloat16()
    return {name: value.contiguous() for name, value in sorted(result.items())}


def export(model: DeepSeek, tokenizer: pathlib.Path, folder: pathlib.Path, fp8: bool):
    """Writes a model folder; each file replaces its predecessor whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        part = pathlib.Path(part)
        save_file(folder_tensors(model, fp8), part / "model.safetensors", {"format": "pt"})
        for name, value in {
            "config.json": config_json(model.config, fp8),
            "generation_config.json": {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1,
                                       "do_sample": True, "temperature": 0.6, "top_p": 0.95},
            "tokenizer_config.json": tokenizer_config_json(),
        }.items():
            (part / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        shutil.copy(tokenizer, part / "tokenizer.json")
        for file in part.iterdir():
            os.chmod(file, 0o644)
            file.rename(folder / file.name)


def load(folder: pathlib.Path) -> DeepSeek:
    """The model of an exported folder, in float32; FP8 weights are expanded."""
    config = json.loads((folder / "config.json").read_text())
    model = DeepSeek(Config(**{k: v for k, v in config.items() if k in Config.__annotations__}))
    stored = load_file(folder / "model.safetensors")

    def tensor(name: str) -> torch.Tensor:
        factor = stored.get(f"{name}_scale_inv")
        return stored[name].float() if factor is None else dequantize(stored[name], factor)

    state = {}
    for name, value in model.state_dict().items():
        full = name if name.startswith("lm_head") else f"model.{name}"
        if ".mlp.experts." in full:
            prefix, projection = full.rsplit(".", 1)
            state[name] = torch.stack([tensor(f"{prefix}.{i}.{projection}.weight") for i in range(len(value))])
        else:
            state[name] = tensor(full)
    model.load_state_dict(state)
    return model


def check(folder: pathlib.Path):
    """Compares logits and greedy text with transformers' DeepseekV3ForCausalLM on the same folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load(folder).eval()
    worst = 0.0
    with torch.inference_mode():
        for problem in problems.distinct_held_out(4):
            text = tokenizer.apply_chat_template([{"role": "user", "content": problem.prompt}],
                                                 tokenize=False, add_generation_prompt=True)
            assert text == tokens.render(problem.prompt), text
            ids = tokenizer(text + problem.response, add_special_tokens=False, return_tensors="pt").input_ids
            own = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text + problem.response).ids
            assert ids[0].tolist() == own
            assert tokenizer.decode(own) == text + problem.response
            ours, theirs = model.logits(model(ids)), reference(ids).logits
            worst = max(worst, ((ours - theirs).abs().max() / theirs.abs().max()).item())
    print(f"largest relative logit difference from transformers: {worst:.2e}")
    assert worst < 1e-4


def write_problems(folder: pathlib.Path) -> None:
    """For `shoal eval`: held-out problems with their answers (--puzzles), and some thought through (--text)."""
    def write(name, lines):
        (folder / name).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    write("puzzles.jsonl", ({"task": p.task, "prompt": p.prompt, "answer": p.answer}
                            for p in problems.distinct_held_out(100)))
    write("solutions.jsonl", ({"prompt": tokens.render(p.prompt).removeprefix(tokens.BOS), "text": p.response + tokens.EOS}
                              for p in problems.distinct_held_out(20)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path)
    parser.add_argument("--bf16", type=pathlib.Path, default=HERE.parent / "demo-model")
    parser.add_argument("--fp8", type=pathlib.Path, default=HERE.parent / "demo-model-fp8")
    parser.add_argument("--check", action="store_true", help="compare the BF16 folder with transformers")
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.checkpoint:
        saved = torch.load(args.checkpoint, weights_only=False)
        model = DeepSeek(Config(vocab_size=len(saved["model"]["embed_tokens.weight"])))
        model.load_state_dict(saved["model"])
        for folder, fp8 in ((args.bf16, False), (args.fp8, True)):
            export(model, args.tokenizer or folder / "tokenizer.json", folder, fp8)
        write_problems(args.bf16)
    if args.check:
        check(args.bf16)
