"""DeepSeek-V3 in miniature: multi-head latent attention, routed experts and an MTP layer.

Parameter names are those of the published checkpoints, except that a layer's expert projections
are stacked into one tensor (`mlp.experts.{gate,up,down}_proj`, [experts, rows, columns]) while
training; `published_tensors` takes them apart.
"""

import math
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    """The shape of the model; the fields are config.json's."""
    vocab_size: int = 896
    hidden_size: int = 256
    num_hidden_layers: int = 4
    first_k_dense_replace: int = 1
    intermediate_size: int = 256
    moe_intermediate_size: int = 256
    n_routed_experts: int = 8
    num_experts_per_tok: int = 2
    n_shared_experts: int = 1
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.5
    num_attention_heads: int = 4
    q_lora_rank: int = 256
    kv_lora_rank: int = 256
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 32
    v_head_dim: int = 64
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 4096
    rope_factor: float = 8.0
    rope_original_positions: int = 512
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_mscale: float = 1.0


def yarn_frequencies(config: Config) -> torch.Tensor:
    """Rotary frequencies, stretched by YaRN where a full turn exceeds the original context."""
    dim, base = config.qk_rope_head_dim, config.rope_theta
    plain = base ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)

    def turns_at(turns: float) -> float:
        return dim * math.log(config.rope_original_positions / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(turns_at(config.rope_beta_fast)), 0)
    high = min(math.ceil(turns_at(config.rope_beta_slow)), dim - 1)
    stretch = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain * (1 - stretch) + plain / config.rope_factor * stretch


def compiled(function):
    """Fuses an elementwise function when DEMO_COMPILE=1: slow to start, faster to train."""
    return torch.compile(function, dynamic=True) if os.environ.get("DEMO_COMPILE") == "1" else function


@compiled
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square normalization, computed in float32."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


@compiled
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


@compiled
def queries_and_keys(q, kv, k_rope, cos, sin, nope: int):
    """Rotates the positional parts and joins them to the plain parts of queries and keys."""
    q = q.transpose(1, 2)
    k_rope = rotate(k_rope.unsqueeze(1), cos, sin).expand(-1, q.shape[1], -1, -1)
    q = torch.cat((q[..., :nope], rotate(q[..., nope:], cos, sin)), -1)
    k = torch.cat((kv.transpose(1, 2)[..., :nope], k_rope), -1)
    return q, k


@compiled
def causal_attention(q, k, v, scale: float):
    """Softmax attention to the past; for short sequences plain products beat a flash kernel."""
    scores = (q @ k.mT).float() * scale
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1).to(v.dtype) @ v


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates interleaved pairs; the result holds first all even, then all odd components."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat((even * cos - odd * sin, odd * cos + even * sin), -1)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.5 / math.sqrt(inputs))
    return layer


class Attention(nn.Module):
    """Multi-head latent attention, with keys and values expanded from the latent."""

    def __init__(self, config: Config):
        super().__init__()
        c = self.config = config
        self.q_a_proj = linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = linear(c.q_lora_rank, c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim))
        self.kv_a_proj_with_mqa = linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = linear(c.kv_lora_rank, c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim))
        self.o_proj = linear(c.num_attention_heads * c.v_head_dim, c.hidden_size)
        mscale = 0.1 * c.rope_mscale * math.log(c.rope_factor) + 1.0
        self.scale = (c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5 * mscale * mscale

    def forward(self, x, cos, sin, cache=None, positions=None):
        c = self.config
        batch, length, heads = x.shape[0], x.shape[1], c.num_attention_heads
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(batch, length, heads, -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, c.qk_rope_head_dim), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(batch, length, heads, -1)
        q, k = queries_and_keys(q, kv, k_rope, cos, sin, c.qk_nope_head_dim)
        v = kv[..., c.qk_nope_head_dim:].transpose(1, 2)
        if cache is None:
            out = causal_attention(q, k, v, self.scale)
        else:
            index = positions[:, None, :, None]
            cache[0].scatter_(2, index.expand_as(k), k.to(cache[0].dtype))
            cache[1].scatter_(2, index.expand_as(v), v.to(cache[1].dtype))
            k, v = cache[0].to(q.dtype), cache[1].to(q.dtype)
            mask = torch.arange(k.shape[2])[None, None, None, :] <= index
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, hidden: int, intermediate: int):
        super().__init__()
        self.gate_proj = linear(hidden, intermediate)
        self.up_proj = linear(hidden, intermediate)
        self.down_proj = linear(intermediate, hidden)

    def forward(self, x):
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Gate(nn.Module):
    """V3's router: sigmoid scores, group-limited top-k, selection corrected by a bias."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.randn(config.n_routed_experts, config.hidden_size) * 0.02)
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.register_buffer("load", torch.zeros(config.n_routed_experts), persistent=False)

    def forward(self, x):
        c = self.config
        with torch.autocast("cpu", enabled=False):
            scores = torch.sigmoid(F.linear(x.float(), self.weight.float()))
        with torch.no_grad():
            choice = scores + self.e_score_correction_bias
            groups = choice.view(len(x), c.n_group, -1)
            kept = groups.topk(2, -1)[0].sum(-1).topk(c.topk_group, -1)[1]
            mask = torch.ones_like(groups, dtype=torch.bool)
            mask.scatter_(1, kept[..., None].expand(-1, -1, groups.shape[2]), False)
            experts = groups.masked_fill(mask, float("-inf")).flatten(1).topk(c.num_experts_per_tok, -1)[1]
            self.load += torch.bincount(experts.flatten(), minlength=c.n_routed_experts)
        weights = scores.gather(1, experts)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * c.routed_scaling_factor
        return experts, weights

    @torch.no_grad()
    def balance(self, speed: float):
        """Moves the bias against the load seen since the last call (V3 report, 2.1.2)."""
        self.e_score_correction_bias += speed * torch.sign(self.load.mean() - self.load)
        self.e_score_correction_bias -= self.e_score_correction_bias.min()
        self.load.zero_()


class Dispatch(torch.autograd.Function):
    """Copies each token to its experts' slots, slots sorted by expert."""

    @staticmethod
    def forward(ctx, x, order, slots, top_k):
        ctx.save_for_backward(slots)
        ctx.top_k = top_k
        return x[order // top_k]

    @staticmethod
    def backward(ctx, grad):
        (slots,) = ctx.saved_tensors
        return grad[slots].view(-1, ctx.top_k, grad.shape[1]).sum(1), None, None, None


class Collect(torch.autograd.Function):
    """Brings the slots back into token order."""

    @staticmethod
    def forward(ctx, y, order, slots):
        ctx.save_for_backward(order)
        return y[slots]

    @staticmethod
    def backward(ctx, grad):
        return grad[ctx.saved_tensors[0]], None, None


class Experts(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        n, h, i = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_proj = nn.Parameter(torch.randn(n, i, h) * 0.5 / math.sqrt(h))
        self.up_proj = nn.Parameter(torch.randn(n, i, h) * 0.5 / math.sqrt(h))
        self.down_proj = nn.Parameter(torch.randn(n, h, i) * 0.5 / math.sqrt(i))

    def forward(self, x, experts, weights):
        top_k = experts.shape[1]
        order = experts.flatten().argsort(stable=True)
        slots = torch.empty_like(order)
        slots[order] = torch.arange(len(order))
        counts = torch.bincount(experts.flatten(), minlength=len(self.gate_proj)).tolist()
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        rows = Dispatch.apply(x.to(dtype), order, slots, top_k).split(counts)
        gate, up, down = (w.to(dtype).unbind() for w in (self.gate_proj, self.up_proj, self.down_proj))
        out = [F.linear(swiglu(F.linear(r, g), F.linear(r, u)), d)
               for r, g, u, d in zip(rows, gate, up, down)]
        out = Collect.apply(torch.cat(out), order, slots).view(len(x), top_k, -1)
        return (out * weights.to(out.dtype)[..., None]).sum(1)


class MoE(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        self.shared_experts = MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        return self.experts(flat, *self.gate(flat)).view_as(x) + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, config: Config, index: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = index < config.first_k_dense_replace
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if dense else MoE(config)

    def forward(self, x, cos, sin, cache=None, positions=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, positions)
        return x + self.mlp(self.post_attention_layernorm(x))


class MTPLayer(Layer):
    """The multi-token-prediction layer: sees a hidden state and the token after it."""

    def __init__(self, config: Config):
        super().__init__(config, config.num_hidden_layers)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(config.hidden_size, config.rms_norm_eps)})

    def forward(self, hidden, embedded, cos, sin):
        x = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), -1))
        return self.shared_head["norm"](super().forward(x, cos, sin))


class DeepSeek(nn.Module):
    """The trunk, its output head and the MTP layer (stored as the layer after the last)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        self.layers = nn.ModuleList([*(Layer(config, i) for i in range(config.num_hidden_layers)),
                                     MTPLayer(config)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        angles = torch.arange(config.max_position_embeddings).float()[:, None] * yarn_frequencies(config)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @property
    def trunk(self):
        return self.layers[:self.config.num_hidden_layers]

    @property
    def gates(self) -> dict[int, Gate]:
        return {i: layer.mlp.gate for i, layer in enumerate(self.layers) if isinstance(layer.mlp, MoE)}

    def empty_cache(self, batch: int, length: int) -> list:
        """Key and value storage for `forward` with a cache, one pair per trunk layer."""
        c = self.config
        sizes = (c.qk_nope_head_dim + c.qk_rope_head_dim, c.v_head_dim)
        return [tuple(torch.zeros(batch, c.num_attention_heads, length, s) for s in sizes) for _ in self.trunk]

    def forward(self, tokens, cache=None, positions=None):
        """The last hidden state before the final norm; logits are `lm_head(norm(hidden))`."""
        x = self.embed_tokens(tokens)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        if positions is None:
            cos, sin = self.cos[:tokens.shape[1]].to(x.dtype), self.sin[:tokens.shape[1]].to(x.dtype)
        else:
            cos, sin = self.cos[positions][:, None].to(x.dtype), self.sin[positions][:, None].to(x.dtype)
        for i, layer in enumerate(self.trunk):
            x = layer(x, cos, sin, None if cache is None else cache[i], positions)
        return x

    def forward_mtp(self, hidden, next_tokens):
        """Normed MTP state at each position, given the trunk's hidden state and the next token."""
        embedded = self.embed_tokens(next_tokens).to(hidden.dtype)
        length = hidden.shape[1]
        return self.layers[-1](hidden, embedded, self.cos[:length].to(hidden.dtype),
                               self.sin[:length].to(hidden.dtype))

    def logits(self, hidden):
        return self.lm_head(self.norm(hidden))


def published_tensors(model: DeepSeek) -> dict[str, torch.Tensor]:
    """All tensors under the names of the published checkpoints."""
    tensors = {}
    for name, value in model.state_dict().items():
        name = name if name.startswith("lm_head") else f"model.{name}"
        if ".mlp.experts." in name:
            prefix, projection = name.rsplit(".", 1)
            for i, expert in enumerate(value.unbind()):
                tensors[f"{prefix}.{i}.{projection}.weight"] = expert.contiguous()
        else:
            tensors[name] = value
    return tensors


@torch.no_grad()
def generate(model: DeepSeek, prompts: list[list[int]], stop: int, limit: int) -> list[list[int]]:
    """Greedy continuations of a batch of prompts of different lengths, without the stop token."""
    lengths = torch.tensor([len(p) for p in prompts])
    longest = int(lengths.max())
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in zip(tokens, prompts):
        row[:len(prompt)] = torch.tensor(prompt)
    cache = model.empty_cache(len(prompts), longest + limit)
    hidden = model(tokens, cache, torch.arange(longest).expand(len(prompts), -1))
    token = model.logits(hidden[torch.arange(len(prompts)), lengths - 1]).argmax(-1)
    outputs, alive = [token], token != stop
    positions = lengths[:, None]
    while alive.any() and len(outputs) < limit:
        token = model.logits(model(token[:, None], cache, positions)[:, 0]).argmax(-1)
        alive &= token != stop
        outputs.append(token)
        positions = positions + 1
    rows = torch.stack(outputs, 1).tolist()
    return [row[:row.index(stop)] if stop in row else row for row in rows]
