"""Small tokenizers with the settings of well-known model families, trained on the texts below."""

import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SAMPLES = [
    "The quick brown fox jumps over the lazy dog. It's what we've said: they'll, I'd, you're, I'M, DON'T!",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Ça va où? Piñata, São Paulo, Ærøskøbing.",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία.",
    "人工智能正在改变世界，我们用它写代码。日本語のテキストとカタカナ、ひらがな。한국어 문장도 있습니다. 漢字龦㐀𠀀",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם! नमस्ते दुनिया, आप कैसे हैं? สวัสดีชาวโลก ကမ္ဘာ ভালো আছি",
    "Emoji: 😀😃👩‍👩‍👧‍👦🏳️‍🌈🇩🇪👍🏽❤️‍🔥 and symbols ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → γ; €£¥₿ ½ ⅔ ² ³ Ⅷ ① ١٢٣ ४५६",
    "def f(x: int) -> str:\n    \"\"\"Docstring.\"\"\"\n\tif x == 0:\r\n        return f'{x!r:>10}'\n\n\n    return None  # done\n",
    "#include <vector>\nint main(){std::vector<int> v{1,22,333,4444,55555,123456789};for(auto&x:v)x<<=1;return 0;}\n",
    "{\"key\": [1, 2.5e-10, true, null], \"nested\": {\"a\": \"b\\n\\u00e9\"}}\n<html><body class='x'>&amp;</body></html>",
    "  leading,   three,\ttab,\u00a0nbsp,\u3000ideographic,\u2003em,\u200bzero,\u180emongolian,\u0085nel trailing   \n \n  \r\n\r\n",
    "e\u0301 vs \u00e9, a\u0323\u0307 vs a\u0307\u0323, \u1112\u1161\u11ab vs \ud55c, ﬁ ﬀ ﬃ, ½, ℌ, ｆｕｌｌ ｗｉｄｔｈ, Å Å, İstanbul ıI ſs K",
    "Naïve café — “quoted” ‘single’ … dash–dash ‐ _under_score_ camelCase HTTPServer x86_64 v1.2.3 3,141.59 10:30 1st 2nd",
    "Antidisestablishmentarianism aaaaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!!!! ???...---=== \\\\\\ ///// ((((())))) <<<>>> ",
    "Ⓐⓑ 🄰 𝔸𝕓 ๑๒๓ ᠎ ﷽ \u200d\u200c\ufeff \ufffd \U0001f9d1\u200d\U0001f680 \U000e0041 \ue000 \x00\x01\x7f",
]

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
DEEPSEEK = ["\\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def special(text, **flags):
    return AddedToken(text, special=True, normalized=False, **flags)


def plain(text, normalized=False, **flags):
    return AddedToken(text, special=False, normalized=normalized, **flags)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False} | options)


def train(pre_tokenizer, normalizer=None, added=(), vocab_size=900, byte_alphabet=True, post=None, decoder=None,
          first=(), **model_options):
    tokenizer = Tokenizer(models.BPE(**model_options))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, special_tokens=list(first), min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_alphabet else [])
    tokenizer.train_from_iterator(SAMPLES, trainer)
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    if post is not None:
        tokenizer.post_processor = post(tokenizer)
    tokenizer.decoder = decoder or decoders.ByteLevel()
    return tokenizer


def bos_template(token):
    return lambda tokenizer: processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, tokenizer.token_to_id(token))])


def deepseek():
    names = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
    chat = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜fim▁hole｜>", "<|EOT|>",
            "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "<｜place▁holder▁no▁0｜>", "<｜place▁holder▁no▁01｜>"]
    return train(pre_tokenizers.Sequence([split(p) for p in DEEPSEEK] + [byte_level()]),
                 normalizer=normalizers.Sequence([]), added=[special(n) for n in names] + [plain(n) for n in chat],
                 post=bos_template(names[0]))


def qwen2():
    return train(pre_tokenizers.Sequence([split(QWEN2), byte_level()]), normalizer=normalizers.NFC(),
                 added=[special(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] +
                       [plain("<tool_call>"), plain("</tool_call>"), plain("<think>", normalized=True)],
                 post=lambda t: processors.ByteLevel(trim_offsets=False))


def llama3():
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return train(pre_tokenizers.Sequence([split(LLAMA3), byte_level()]), added=[special(n) for n in names],
                 ignore_merges=True,
                 post=lambda t: processors.Sequence([processors.ByteLevel(trim_offsets=False), bos_template(names[0])(t)]))


def gpt2():
    return train(byte_level(use_regex=True), added=[special("<|endoftext|>")],
                 post=lambda t: processors.ByteLevel(trim_offsets=False))


def roberta():
    """A prefix space, tokens that strip their surroundings, and cls/sep."""
    return train(byte_level(use_regex=True, add_prefix_space=True), first=["<s>", "</s>", "<unk>"],
                 added=[AddedToken("<mask>", special=True, lstrip=True, normalized=False),
                        AddedToken("[R]", special=True, rstrip=True), plain("word", normalized=True, single_word=True),
                        plain("Strip", normalized=True, lstrip=True, rstrip=True), plain("  "), plain("éa")],
                 post=lambda t: processors.RobertaProcessing(("</s>", 1), ("<s>", 0)))


def o200k():
    return train(pre_tokenizers.Sequence([split(O200K, "removed", True), byte_level()]),
                 added=[special("<|endoftext|>"), special("<|endofprompt|>")])


def starcoder():
    return train(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)]),
                 added=[special("<fim_prefix>"), special("<jupyter_code>")])


def llama2():
    """SentencePiece converted: spaces become U+2581, unknown characters become bytes."""
    return train(None, normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
                 first=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)], byte_alphabet=False,
                 vocab_size=1100, unk_token="<unk>", fuse_unk=True, byte_fallback=True, post=bos_template("<s>"),
                 decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                            decoders.Strip(" ", 1, 0)]))


def metaspace():
    return train(pre_tokenizers.Metaspace(prepend_scheme="first"), normalizer=normalizers.NFKC(), first=["<unk>"],
                 byte_alphabet=False, vocab_size=700, unk_token="<unk>", fuse_unk=False, added=[special("<s>")],
                 decoder=decoders.Metaspace(prepend_scheme="first"))


def behaviours():
    """One Split of every behaviour, and the normalizers no family above has."""
    return train(pre_tokenizers.Sequence([split("[,;]", "merged_with_previous"), split("[(<]", "merged_with_next"),
                                          split(r"\d", "contiguous"), split(r"[^\S\n]+", "removed"),
                                          pre_tokenizers.Split("ab", "isolated"), pre_tokenizers.Punctuation(),
                                          split(r"\w*", "isolated", True), byte_level()]),
                 normalizer=normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase(), normalizers.Strip(),
                                                  normalizers.Replace(Regex("x+"), "y")]),
                 added=[plain("XyZ", normalized=True), plain("Émile", normalized=True)])


FAMILIES = {f.__name__: f for f in (deepseek, qwen2, llama3, gpt2, roberta, o200k, starcoder, llama2, metaspace, behaviours)}


def added_texts(tokenizer):
    return [t.content for t in tokenizer.get_added_tokens_decoder().values()]


# Ranges assigned since before Unicode 12, so that libraries built for different versions agree on them.
RANGES = [(0, 0x7F), (0x80, 0x24F), (0x250, 0x36F), (0x391, 0x3A1), (0x400, 0x45F), (0x5D0, 0x5EA), (0x610, 0x669),
          (0x905, 0x939), (0x93E, 0x94D), (0xE01, 0xE3A), (0x1100, 0x1112), (0x1161, 0x1175), (0x11A8, 0x11C2),
          (0x1E00, 0x1EFF), (0x2000, 0x2064), (0x2070, 0x2071), (0x20A0, 0x20BE), (0x2100, 0x218B), (0x2190, 0x23FE),
          (0x2460, 0x24FF), (0x2E80, 0x2E99), (0x3000, 0x303F), (0x3041, 0x3096), (0x30A0, 0x30FF), (0x4E00, 0x4E80),
          (0x9FA0, 0x9FAA), (0xAC00, 0xAC80), (0xD7A0, 0xD7A3), (0xE000, 0xE010), (0xF900, 0xFA6D), (0xFB00, 0xFB06),
          (0xFF01, 0xFFBE), (0x1D400, 0x1D454), (0x1F130, 0x1F169), (0x1F300, 0x1F6D2), (0x20000, 0x20010),
          (0x2F800, 0x2FA1D), (0xE0100, 0xE01EF)]


def random_text(rng, added, longest=60):
    """Bytes that are mostly text: snippets, added tokens, characters of many scripts, white space, malformed UTF-8."""
    parts = []
    for _ in range(rng.randint(0, longest)):
        kind = rng.random()
        if kind < 0.25:
            sample = rng.choice(SAMPLES)
            start = rng.randrange(len(sample))
            parts.append(sample[start:start + rng.randint(1, 12)].encode())
        elif kind < 0.35 and added:
            token = rng.choice(added)
            parts.append((token if rng.random() < 0.8 else token[:rng.randint(1, len(token))]).encode())
        elif kind < 0.55:
            parts.append(rng.choice([" ", "  ", "\n", "\r\n", "\t", "\r", "\n\n", "    ", "\u00a0", "\u3000"]).encode())
        elif kind < 0.65:
            parts.append(rng.choice(["'s", "'S", "'ll", "'ſ", "'RE", "1", "23", "456", "٣", "aab", ", ", "(", "_", "x"])
                         .encode())
        elif kind < 0.95:
            low, high = rng.choice(RANGES)
            parts.append(chr(rng.randint(low, high)).encode())
        else:
            parts.append(bytes(rng.choice([0x80, 0xC3, 0xE4, 0xED, 0xF0, 0xFF, 0xBD, 0xA0, 0x41])
                               for _ in range(rng.randint(1, 4))))
    return b"".join(parts)
