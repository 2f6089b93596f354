"""Renders the models' own chat templates with many conversations, by Shoal and by transformers, and compares."""

import json

import chat_template_conversations as conversations
import jinja_reference
import pytest
import transformers

if not jinja_reference.TOOL.exists():
    pytest.skip(f"{jinja_reference.TOOL} is not built", allow_module_level=True)

FIXTURES = jinja_reference.ROOT / "tests/fixtures/chat_templates"
DEMO_MODEL = jinja_reference.ROOT / "launch/demo-model"


def templates():
    found = {path.stem: path.read_bytes().decode() for path in FIXTURES.glob("*.jinja")}
    found |= json.loads((FIXTURES / "short.json").read_text())
    found["demo-model"] = json.loads((DEMO_MODEL / "tokenizer_config.json").read_text())["chat_template"]
    return dict(sorted(found.items()))


@pytest.mark.parametrize("name,template", templates().items(), ids=templates())
def test_renders_as_transformers_does(name, template):
    wrong = jinja_reference.compare(conversations.jobs(template))
    assert not wrong, jinja_reference.explain(wrong)


def test_most_renderings_are_no_errors():
    """Else the comparison would say little."""
    jobs = [job for template in templates().values() for job in conversations.jobs(template)[:8]]
    outcomes = jinja_reference.run_tool(jobs)
    assert sum("text" in outcome for outcome in outcomes) > 0.9 * len(jobs)


def folder_cases():
    added = {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": True, "rstrip": False,
             "single_word": False}
    shown = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token is defined }}|{{ tools is none }}|"
    named = [{"name": "default", "template": "D " + shown}, {"name": "tool_use", "template": "T " + shown}]
    tokens = {"bos_token": added, "eos_token": "</s>", "pad_token": None}
    return {
        "text": ({"chat_template": shown, **tokens}, {}),
        "named": ({"chat_template": named, **tokens}, {}),
        "no tool_use": ({"chat_template": named[:1], **tokens}, {}),
        "file": (tokens, {"chat_template.jinja": "F " + shown + "\n"}),
        "both": ({"chat_template": "C", **tokens}, {"chat_template.jinja": "F " + shown}),
        "other tokens": ({"chat_template": "{{ cls_token }}{{ sep_token }}{{ mask_token }}", "cls_token": "[C]",
                          "sep_token": "[S]", "mask_token": added}, {}),
    }


@pytest.mark.parametrize("config,files", folder_cases().values(), ids=folder_cases())
def test_reads_folders_as_transformers_does(config, files, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((DEMO_MODEL / "tokenizer.json").read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = conversations.PLAIN["several turns"]
    for tools in (None, conversations.TOOLS["one"]):
        for extra in ({}, {"bos_token": "<other>", "pad_token": "p"}):
            want = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True,
                                                 **extra)
            job = {"folder": str(tmp_path), "messages": messages, "tools": tools, "add_generation_prompt": True,
                   "extra": extra}
            assert jinja_reference.run_tool([job]) == [{"text": want}]
