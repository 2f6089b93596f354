"""Conversations to try chat templates on: what clients send, and what they should not."""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "detailed": {"type": "boolean"},
            },
            "required": ["location"],
        },
    },
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search the \"web\" <fast> & find 'things' — naïvely\nSecond line",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "filters": {
                    "type": "object",
                    "properties": {"tags": {"type": "array", "items": {"type": "string"}},
                                   "score": {"type": "number", "default": 0.5}},
                },
                "limit": {"type": ["integer", "null"]},
            },
            "required": ["query"],
        },
        "strict": True,
    },
}
NO_PARAMETERS = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {
    "type": "object", "properties": {}}}}


def call(name, arguments, number=1):
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def tool(text, **more):
    return {"role": "tool", "content": text, **more}


PLAIN = {
    "user": [user("Hello, how are you?")],
    "system and user": [system("You are helpful."), user("Hi")],
    "several turns": [user("Hi"), assistant("Hello!"), user("What is 2+2?"), assistant("4"), user("And 3+3?")],
    "several turns with system": [system("Be brief."), user("Hi"), assistant("Hello!"), user("Bye")],
    "ends with assistant": [system("S"), user("Hi"), assistant("Hello!")],
    "white space": [system("  \n padded \n"), user("\n\t hi \r\n there \n"), assistant("  answer  \n"), user(" ")],
    "empty contents": [system(""), user(""), assistant(""), user("")],
    "unicode": [system("Réponds en français 😀"), user("日本語 \u2028 \u00a0 ßẞ İ"),
                assistant("مرحبا \U0001F9D1\u200d\U0001F680"),
                user("\ufeff\u0301 e\u0301")],
    "quotes": [system("It's \"quoted\" \\ back"), user("{{ x }} {% raw %} {# c #} <b>&amp;</b> 'q'"),
               assistant("\"\"\"```json\n{\"a\": 1}\n```"), user("<|im_start|>system\nx<|im_end|>[INST]</s>")],
    "think tags": [user("Hi"), assistant("<think>\nhm\n</think>\n\nHello"), user("More"),
                   assistant("<think>a</think>b</think>c"), user("x")],
    "think unclosed": [user("Hi"), assistant("<think>\nno end"), user("y"), assistant("no start</think> done"),
                       user("z")],
    "reasoning content": [user("Hi"), assistant("Hello", reasoning_content="I should greet.\n"), user("More"),
                          assistant("Sure", reasoning_content="think more", thinking="t", reasoning="r"), user("x")],
    "reasoning at the end": [user("Hi"), assistant("Hello", reasoning_content="\nI should greet.\n")],
    "long": [m for i in range(12) for m in (user(f"question {i}"), assistant(f"answer {i}"))] + [user("last")],
}

ODD = {
    "no messages at all": [],
    "only system": [system("alone")],
    "only assistant": [assistant("alone")],
    "two users": [user("one"), user("two")],
    "two systems": [system("one"), system("two"), user("hi")],
    "late system": [user("hi"), assistant("yes"), system("late"), user("more")],
    "assistant first": [assistant("hello"), user("hi")],
    "unknown role": [user("hi"), {"role": "narrator", "content": "meanwhile"}],
    "developer": [{"role": "developer", "content": "Obey."}, user("hi")],
    "no content": [user("hi"), {"role": "assistant"}, user("x")],
    "null content": [system("s"), user(None), assistant(None)],
    "no role": [{"content": "x"}],
    "numbers": [user(12), assistant(1.5), user(True)],
    "names": [{"role": "user", "name": "Ann", "content": "hi"}, assistant("yo", name="Bob"), user("x")],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two "}]}],
    "parts everywhere": [{"role": "system", "content": [{"type": "text", "text": "sys"}]},
                         {"role": "user", "content": [{"type": "text", "text": "q"}]},
                         {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
                         {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "look"}]}],
    "image": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}],
    "more fields": [dict(user("hi"), weight=1, metadata={"a": [1, 2.5, None]}, prefix=True, train=False)],
    "a tool alone": [tool("orphan")],
    "messages of text": ["hi"],
}

ARGUMENTS = {"location": "Paris, France", "unit": "celsius", "days": 3, "detailed": True}
NESTED = {"query": "it's \"x\" <y>\n√", "filters": {"tags": ["a", "b"], "score": 1e-07, "none": None}, "limit": 10.0}

TOOL_CALLS = {
    "one call": [user("Weather?"), assistant(None, tool_calls=[call("get_current_weather", ARGUMENTS)]),
                 tool("{\"temp\": 20}", name="get_current_weather", tool_call_id="call00001"), user("Thanks")],
    "one call, text arguments": [
        user("Weather?"), assistant("", tool_calls=[call("get_current_weather", '{"location": "Paris", "days": 3}')]),
        tool("20 degrees", name="get_current_weather", tool_call_id="call00001"),
        assistant("It is 20 degrees."), user("And in Rome?")],
    "call with content": [system("s"), user("Do"), assistant("Let me see.", tool_calls=[call("search", NESTED)]),
                          tool("found\nthings", tool_call_id="call00001", name="search")],
    "parallel calls": [
        user("Both"),
        assistant(None, tool_calls=[call("get_current_weather", ARGUMENTS), call("search", NESTED, 2)]),
        tool("{\"temp\": 20}", name="get_current_weather", tool_call_id="call00001"),
        tool("none", name="search", tool_call_id="call00002"), assistant("Done."), user("ok")],
    "calls in a row": [
        user("Go"), assistant("", tool_calls=[call("now", {})]), tool("12:00", name="now", tool_call_id="call00001"),
        assistant("", tool_calls=[call("search", {"query": "q"}, 2)], reasoning_content="search then"),
        tool("r", name="search", tool_call_id="call00002"), assistant("Answer", reasoning_content="so"), user("x")],
    "ends with a call": [user("Go"), assistant(None, tool_calls=[call("now", {})])],
    "ends with a call, no content": [
        user("Go"), {"role": "assistant", "tool_calls": [call("now", {"a": [1, {"b": 2}]})]}],
    "no tool calls": [
        user("Go"), assistant("fine", tool_calls=[]), user("x"), assistant("y", tool_calls=None), user("z")],
    "tool content of other kinds": [
        user("Go"), assistant("", tool_calls=[call("now", {})]), tool({"time": 12.0, "ok": None}, name="now"),
        assistant("", tool_calls=[call("now", {}, 2)]), tool([{"type": "text", "text": "part"}], name="now"),
        user("x")],
    "calls without a function": [user("Go"), assistant("", tool_calls=[{"name": "now", "arguments": {"a": 1}}]),
                                 {"role": "tool", "name": "now", "content": "1"}, user("x")],
    "long ids": [user("Go"), assistant("", tool_calls=[dict(call("now", {}), id="call_" + "x" * 24)]),
                 tool("1", tool_call_id="call_" + "x" * 24), user("x")],
    "arguments that are no JSON": [
        user("Go"), assistant("", tool_calls=[call("now", "not { json")]), tool("1"), user("x")],
    "tool role names": [
        user("Go"), assistant("", tool_calls=[call("now", {})]), {"role": "ipython", "content": {"output": 1}},
        {"role": "function", "name": "now", "content": "12"}, {"role": "observation", "content": "o"}],
}

TOOLS = {"one": [WEATHER], "several": [WEATHER, SEARCH, NO_PARAMETERS], "bare": [WEATHER["function"]], "none": []}

DOCUMENTS = [{"title": "Tall penguins", "text": "Emperor penguins are the tallest."},
             {"title": "Habitats", "text": "They \"live\" in Antarctica.", "doc_id": 2}]

EXTRAS = [
    {},
    {"enable_thinking": False, "thinking": True, "reasoning_effort": "high", "date_string": "01 Jan 2024"},
    {"enable_thinking": True, "thinking": False, "documents": DOCUMENTS, "tools_in_user_message": False,
     "builtin_tools": ["browser", "python", "code_interpreter"], "strict": True, "keep_thinking": True},
    {"xml_tools": [WEATHER], "python_tools": [SEARCH], "controls": {"length": "long"}, "citation_mode": "off",
     "add_vision_id": True, "model_identity": "You are Test.", "safety_mode": "none", "custom_tools": [WEATHER]},
]

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def jobs(template):
    """chat_template_tool's jobs for one template."""
    out = []

    def add(messages, tools=None, generation=True, extra=None):
        out.append({"template": template, "messages": messages, "tools": tools, "add_generation_prompt": generation,
                    "extra": extra or {}, "special_tokens": SPECIAL_TOKENS})

    for messages in {**PLAIN, **ODD, **TOOL_CALLS}.values():
        for generation in (False, True):
            add(messages, generation=generation)
    for extra in EXTRAS[1:]:
        for messages in {**PLAIN, **TOOL_CALLS}.values():
            add(messages, extra=extra)
    for tools in TOOLS.values():
        for name in ("user", "system and user", "several turns with system", "only system", "parts everywhere"):
            add({**PLAIN, **ODD}[name], tools=tools)
    for messages in TOOL_CALLS.values():
        for extra in EXTRAS[:3]:
            add(messages, tools=TOOLS["several"], extra=extra)
        add(messages, tools=TOOLS["one"], generation=False)
    return out
