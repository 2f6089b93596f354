"""Trains the demo model from scratch on generated problems.

The trunk first, with Muon for the matrices and AdamW for the rest, under a warmup-stable-decay
schedule driven by wall time; then (`--mtp`) the MTP layer alone, on the frozen trunk.

Each core runs a single-threaded worker on its own batch.  Parameters live in shared memory: after
a barrier every worker updates the parameters it owns from the mean of all gradients.
"""

import argparse
import pathlib
import random
import time

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer

import problems
import tokenizer as tokens
from evaluate import right_answers
from model import Config, DeepSeek

POOL = 2048


class Muon:
    """Momentum whose update is orthogonalized (Jordan et al. 2024), batched over equal shapes."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, decay: float = 0.1):
        self.lr, self.momentum, self.decay, self.scale = lr, momentum, decay, 1.0
        self.shapes = {}
        for p in parameters:
            self.shapes.setdefault(tuple(p.shape[-2:]), []).append(p)
        self.buffers = {s: torch.zeros(sum(p.numel() for p in ps) // (s[0] * s[1]), *s)
                        for s, ps in self.shapes.items()}

    @staticmethod
    def orthogonalize(g: torch.Tensor) -> torch.Tensor:
        """Newton-Schulz iteration towards the nearest semi-orthogonal matrix."""
        x = g.bfloat16()
        wide = x.shape[-2] <= x.shape[-1]
        x = x if wide else x.mT
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for a, b, c in [(3.4445, -4.7750, 2.0315)] * 5:
            s = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
        return x if wide else x.mT

    @torch.no_grad()
    def step(self):
        lr = self.lr * self.scale
        for shape, ps in self.shapes.items():
            g = torch.cat([p.grad.view(-1, *shape) for p in ps])
            buffer = self.buffers[shape]
            buffer.lerp_(g, 1 - self.momentum)
            update = self.orthogonalize(g.lerp_(buffer, self.momentum)).float()
            update *= max(1, shape[0] / shape[1]) ** 0.5
            for p, u in zip(ps, update.split([p.numel() // (shape[0] * shape[1]) for p in ps])):
                p.mul_(1 - lr * self.decay).add_(u.view_as(p), alpha=-lr)


def batches(tokenizer: Tokenizer, seed: int, budget: int, mix: dict[str, float]):
    """Endless (tokens, loss mask) batches of similar length, about `budget` tokens each."""
    stop = tokenizer.token_to_id(tokens.EOS)
    rng = random.Random(seed)
    rest = []
    while True:
        pool, rest = rest, []
        for problem, _ in zip(problems.stream(rng.getrandbits(62), mix=mix), range(POOL)):
            prompt = tokenizer.encode(tokens.render(problem.prompt)).ids
            pool.append((prompt, tokenizer.encode(problem.response).ids + [stop]))
        pool.sort(key=lambda s: len(s[0]) + len(s[1]))
        chunks = [[]]
        for sample in pool:
            if (len(chunks[-1]) + 1) * (len(sample[0]) + len(sample[1])) > budget:
                chunks.append([])
            chunks[-1].append(sample)
        rest = chunks.pop()
        rng.shuffle(chunks)
        for chunk in chunks:
            length = max(len(p) + len(r) for p, r in chunk)
            ids = torch.zeros(len(chunk), length, dtype=torch.long)
            mask = torch.zeros(len(chunk), length, dtype=torch.bool)
            for i, (p, r) in enumerate(chunk):
                ids[i, :len(p) + len(r)] = torch.tensor(p + r)
                mask[i, len(p):len(p) + len(r)] = True
            yield ids, mask


def trunk_loss(model: DeepSeek, ids, mask):
    """Cross entropy of the response tokens."""
    hidden = model(ids[:, :-1])
    wanted = mask[:, 1:]
    return F.cross_entropy(model.logits(hidden[wanted]).float(), ids[:, 1:][wanted])


def mtp_loss(model: DeepSeek, ids, mask):
    """Cross entropy of the token after next, and how often the MTP layer's choice is right."""
    with torch.no_grad():
        hidden = model(ids[:, :-2])
    wanted = mask[:, 2:]
    logits = model.lm_head(model.forward_mtp(hidden, ids[:, 1:-1])[wanted]).float()
    target = ids[:, 2:][wanted]
    return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean().item()


def schedule(progress: float, step: int, decay: float) -> float:
    """Learning-rate scale: warmup over 40 steps, constant, then linear to zero."""
    return min(1.0, (step + 1) / 40, max(0.02, (1 - progress) / decay))


def owners(parameters: dict[str, torch.Tensor], workers: int) -> dict[str, int]:
    """Deals the parameters out so that every worker updates about the same number of values."""
    sizes, result = [0] * workers, {}
    for name in sorted(parameters, key=lambda n: -parameters[n].numel()):
        result[name] = sizes.index(min(sizes))
        sizes[result[name]] += parameters[name].numel()
    return result


def adamw(parameters: dict[str, torch.Tensor], lr: float) -> torch.optim.AdamW:
    """AdamW for embeddings, head, norms and routers, each with its own rate relative to Muon's."""
    rates = {"embed_tokens": 0.2, "lm_head": 0.04, "norm": 0.08, "gate.weight": 0.04}
    groups = [{"params": [p for n, p in parameters.items() if key in n], "rate": lr * rate}
              for key, rate in rates.items()]
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98), eps=1e-8,
                             weight_decay=0.0)


def worker(rank: int, args, model: DeepSeek, gradients: list[dict], shared: dict, barrier):
    """One training process; rank 0 also keeps time, logs and saves."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed + rank)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    parameters = dict(model.named_parameters())
    trained = {n: parameters[n] for n in gradients[0]}
    for n, p in parameters.items():
        p.requires_grad_(n in trained)
    owner = owners(trained, args.workers)
    mine = {n: p for n, p in trained.items() if owner[n] == rank}
    muon = Muon([p for n, p in mine.items() if "_proj" in n], args.lr)
    rest = {n: p for n, p in mine.items() if "_proj" not in n}
    adam = adamw(rest, args.lr) if rest else None
    clock, mix, right = shared["clock"], shared["mix"], shared["right"]
    weights = dict.fromkeys(problems.TASKS, 1.0)
    seed = args.seed * 1000003 + int(clock[1]) * args.workers + rank
    source = batches(tokenizer, seed, args.batch // args.workers, weights)
    puzzles = problems.distinct_held_out(args.eval_problems)[rank::args.workers]
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    begin = logged = saved = evaluated = time.time()
    begin -= clock[0].item()
    since, losses, hits = clock[2].item(), [], []
    warm = 0
    while True:
        elapsed, step = clock[0].item(), int(clock[1])
        if elapsed >= args.minutes * 60:
            break
        weights.update(zip(problems.TASKS, mix.tolist()))
        ids, mask = next(source)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if args.mtp:
                loss, agreement = mtp_loss(model, ids, mask)
                hits.append(agreement)
            else:
                loss = trunk_loss(model, ids, mask)
        loss.backward()
        losses.append(loss.item())
        for n, p in trained.items():
            gradients[rank][n].copy_(p.grad)
            p.grad = None
        barrier.wait()
        scale = schedule(elapsed / (args.minutes * 60), warm, args.decay)
        for n, p in mine.items():
            p.grad = torch.stack([g[n] for g in gradients]).mean(0)
        muon.scale = scale
        muon.step()
        if adam:
            for group in adam.param_groups:
                group["lr"] = group["rate"] * scale
            adam.step()
        for p in mine.values():
            p.grad = None
        warm += 1
        now = time.time()
        if rank == 0:
            for layer, gate in model.gates.items():
                if (layer == model.config.num_hidden_layers) == args.mtp:
                    gate.balance(0.003 * scale)
            clock[0], clock[1] = now - begin, step + 1
            clock[2] += ids.numel() * args.workers
            clock[3] = float(not args.mtp and now - evaluated > args.eval_minutes * 60)
        barrier.wait()
        if rank == 0 and now - logged > 20:
            print(f"{elapsed / 60:6.1f} min  step {step}  {clock[2] / 1e6:.2f}M tokens  "
                  f"{(clock[2] - since) / (now - logged):.0f}/s  loss {sum(losses) / len(losses):.4f}  "
                  + (f"agreement {sum(hits) / len(hits):.4f}" if hits else f"scale {scale:.2f}"), flush=True)
            logged, since, losses, hits = now, clock[2].item(), [], []
        if rank == 0 and now - saved > 120:
            save(args, model, shared)
            saved = now
        if clock[3]:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                for problem in right_answers(model, tokenizer, puzzles):
                    right[rank, list(problems.TASKS).index(problem.task)] += 1
            barrier.wait()
            evaluated = time.time()
            if rank == 0:
                share = right.sum(0) / args.eval_problems
                mix.copy_(0.3 + 1.7 * (1 - share))
                for gate in model.gates.values():
                    gate.load.zero_()
                print("accuracy", {t: round(s, 3) for t, s in zip(problems.TASKS, share.tolist())},
                      f"({evaluated - now:.0f} s)", flush=True)
            barrier.wait()
            right[rank] = 0
    barrier.wait()
    if rank == 0:
        save(args, model, shared)


def save(args, model: DeepSeek, shared: dict):
    out = args.checkpoint.with_suffix(".mtp.pt") if args.mtp else args.checkpoint
    part = out.with_suffix(".part")
    torch.save({"model": model.state_dict(), "clock": shared["clock"], "mix": shared["mix"]}, part)
    part.rename(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    parser.add_argument("--mtp", action="store_true", help="train the MTP layer on the checkpoint's trunk")
    parser.add_argument("--minutes", type=float, default=90, help="of training in total")
    parser.add_argument("--decay", type=float, default=0.4, help="share of the time spent decaying")
    parser.add_argument("--batch", type=int, default=8192, help="tokens per step")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.02, help="of Muon; the others follow")
    parser.add_argument("--eval-minutes", type=float, default=10)
    parser.add_argument("--eval-problems", type=int, default=40, help="per task")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    vocab_size = Tokenizer.from_file(str(args.tokenizer)).get_vocab_size()
    model = DeepSeek(Config(vocab_size=vocab_size))
    # clock: seconds, steps, tokens, whether to evaluate now
    shared = {"clock": torch.zeros(4, dtype=torch.float64), "mix": torch.ones(len(problems.TASKS)),
              "right": torch.zeros(args.workers, len(problems.TASKS))}
    if args.resume or args.mtp:
        saved = torch.load(args.checkpoint)
        model.load_state_dict(saved["model"])
        shared["mix"] = saved["mix"]
        if args.resume:
            shared["clock"] = saved["clock"]
    model.share_memory()
    mtp_prefix = f"layers.{model.config.num_hidden_layers}."
    gradients = [{n: torch.zeros_like(p).share_memory_() for n, p in model.named_parameters()
                  if n.startswith(mtp_prefix) == args.mtp} for _ in range(args.workers)]
    for value in shared.values():
        value.share_memory_()
    barrier = mp.get_context("spawn").Barrier(args.workers)
    mp.spawn(worker, (args, model, gradients, shared, barrier), args.workers)


if __name__ == "__main__":
    main()
