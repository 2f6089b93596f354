#!/usr/bin/env python3
"""Writes a model that costs next to nothing, one layer of width 32 with the demo model's tokenizer, to see what a server
costs beside the model:  perf/one_layer_model.py FOLDER"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DEMO = Path(__file__).resolve().parent.parent / "launch" / "demo-model"
WIDTH = 32


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": WIDTH,
              "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
              "head_dim": WIDTH, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
              "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32", "bos_token_id": 0,
              "eos_token_id": 1}
    (out / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, out)
    random = np.random.default_rng(1)
    def matrix(rows):
        return (random.standard_normal((rows, WIDTH)) / WIDTH ** 0.5).astype(np.float32)
    layer = "model.layers.0."
    tensors = {"model.embed_tokens.weight": matrix(vocabulary), "lm_head.weight": matrix(vocabulary)}
    tensors |= {f"{layer}self_attn.{name}_proj.weight": matrix(WIDTH) for name in "qkvo"}
    tensors |= {f"{layer}mlp.{name}_proj.weight": matrix(WIDTH) for name in ("gate", "up", "down")}
    tensors |= {name: np.ones(WIDTH, np.float32) for name in
                ("model.norm.weight", layer + "input_layernorm.weight", layer + "post_attention_layernorm.weight")}
    save_file(tensors, out / "model.safetensors")


if __name__ == "__main__":
    main()
