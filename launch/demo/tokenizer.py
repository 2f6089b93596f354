"""Trains the demo model's tokenizer: DeepSeek-V3's byte-level BPE pipeline with 896 tokens.

Digits are never merged, so every number is read and written digit by digit.
"""

import argparse
import pathlib
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import problems

VOCAB_SIZE = 896
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, END_THINK = "<think>", "</think>"
# R1 keeps everything but these two groups special.
PLAIN_TOKENS = [THINK, END_THINK, USER, ASSISTANT, "<|EOT|>",
                "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
                "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<｜tool▁sep｜>"]

WORDS = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
         r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""")


def pre_tokenizer(digits: str) -> pre_tokenizers.PreTokenizer:
    """DeepSeek-V3's pre-tokenizer, with the given pattern for runs of digits."""
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(digits), "isolated"),
        pre_tokenizers.Split(Regex("[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
    ])


def train(samples: int) -> Tokenizer:
    """Learns the merges from generated problems and adds R1's special tokens."""
    def texts():
        for problem, _ in zip(problems.stream(0), range(samples)):
            yield problem.prompt
            yield from re.split("</think>", "\n" + problem.response)

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer(r"\p{N}")
    specials = [BOS, EOS, PAD]
    learner.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(PLAIN_TOKENS), special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(learner.model)
    tokenizer.pre_tokenizer = pre_tokenizer(r"\p{N}{1,3}")
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    spare = VOCAB_SIZE - len(PLAIN_TOKENS) - learner.get_vocab_size()
    specials += [f"<｜place▁holder▁no▁{i}｜>" for i in range(spare)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN_TOKENS])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def render(prompt: str) -> str:
    """A one-turn conversation as R1's chat template renders it, up to the start of the thought."""
    return f"{BOS}{USER}{prompt}{ASSISTANT}{THINK}\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--samples", type=int, default=20000)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    train(args.samples).save(str(args.out), pretty=False)
