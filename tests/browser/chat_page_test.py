"""Conversations played through on the chat page, and the operators' page looked at."""

import json
import os

import pytest

PICTURES = os.environ.get("SHOAL_PICTURES")  # a folder for screenshots


def picture(page, name):
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png")


def send(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answered(page, count=1):
    page.locator(".turn.assistant .facts").nth(count - 1).wait_for(timeout=90000)


def stream_of(*contents):
    """What the server would send, for answers that no model here would give."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]} for content in contents]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def answers_with(page, *contents):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=200, content_type="text/event-stream", body=stream_of(*contents)))


def test_a_conversation(page, url):
    page.goto(url + "/")
    send(page, "What is 47 + 38?")
    answered(page)
    facts = page.locator(".turn.assistant .facts").inner_text()
    assert "tokens/s" in facts and "first after" in facts
    thought = page.locator("details.thought")
    assert thought.count() == 1 and not thought.evaluate("node => node.open")
    thought.locator("summary").click()
    assert thought.locator("div").inner_text().strip()
    picture(page, "conversation")
    send(page, "What is 12 + 30?")
    answered(page, 2)
    assert page.locator(".turn.user").all_inner_texts() == ["What is 47 + 38?", "What is 12 + 30?"]

    # A second conversation; both are still there after the page was loaded again.
    page.keyboard.press("Alt+n")
    send(page, "What number comes next? 2, 4, 6")
    answered(page)
    page.reload()
    names = page.locator("#list .open")
    assert names.all_inner_texts() == ["What number comes next? 2, 4, 6", "What is 47 + 38?"]
    names.nth(1).click()
    assert page.locator(".turn.user").count() == 2
    page.get_by_label("Delete What is 47 + 38?").click()
    assert names.all_inner_texts() == ["What number comes next? 2, 4, 6"]
    assert page.problems == [] and all(request.startswith(url) for request in page.requested)


def test_stop(page, url):
    page.goto(url + "/")
    page.evaluate("settings.max_tokens = '3000'")
    page.route("**/v1/chat/completions", lambda route: route.continue_(
        post_data=json.dumps({**json.loads(route.request.post_data), "ignore_eos": True})))
    send(page, "What is 47 + 38?")
    page.locator(".turn.assistant .thought, .turn.assistant .body:not(:empty)").first.wait_for()
    page.keyboard.press("Escape")
    answered(page)
    assert "stopped" in page.locator(".turn.assistant .facts").inner_text()
    assert page.get_by_role("button", name="Send").is_visible()


MARKUP = """# Title
A *word*, a **strong** one, `code`, and a [link](https://example.com).

```python
print("<b>not bold</b>")
```

- one
- two
  - inner

| a | b |
| --- | --- |
| 1 | 2 |

> quoted"""


def test_markdown(page, url):
    page.goto(url + "/")
    answers_with(page, MARKUP[:40], MARKUP[40:])
    send(page, "Show everything")
    answered(page)
    body = page.locator(".turn.assistant .body")
    assert body.locator("h1").inner_text() == "Title" and body.locator("strong").inner_text() == "strong"
    assert 'print("<b>not bold</b>")' in body.locator("pre code").inner_text()
    assert body.locator("li li").inner_text() == "inner" and body.locator("td").all_inner_texts() == ["1", "2"]
    assert body.locator("a").get_attribute("href") == "https://example.com"
    picture(page, "markdown")
    page.emulate_media(color_scheme="dark")
    picture(page, "dark")


@pytest.mark.parametrize("attack", [
    "<script>window.hit = 1</script>", "<img src=x onerror='window.hit=1'>", "[x](javascript:window.hit=1)",
    "```html\n<script>window.hit = 1</script>\n```", "`<svg onload=window.hit=1>`", "[a](data:text/html,<script>)",
    "| <img src=x onerror=window.hit=1> | b |\n| --- | --- |\n| c | d |", "</div></article><script>window.hit=1</script>",
    "![x](https://evil.example/pixel.png)", "<iframe src=https://evil.example></iframe>"])
def test_answers_cannot_inject(page, url, attack):
    page.goto(url + "/")
    answers_with(page, attack)
    send(page, attack)
    answered(page)
    for link in page.locator(".turn a").all():
        assert link.get_attribute("href").startswith(("https:", "http:"))
        assert link.get_attribute("rel") == "noopener noreferrer"
    assert page.evaluate("window.hit") is None
    assert page.locator("#log").locator("script, img, iframe, svg").count() == 0
    assert all(request.startswith(url) for request in page.requested)


def test_the_policy_forbids_scripts_of_others(page, url):
    page.goto(url + "/")
    page.evaluate("""() => { const node = document.createElement("script"); node.textContent = "window.hit = 1";
                             document.body.append(node); }""")
    assert page.evaluate("window.hit") is None
    assert any("Content Security Policy" in problem for problem in page.problems)


def test_long_answers_do_not_hang_the_page(page, url):
    page.goto(url + "/")
    answers_with(page, *["*" * 2000 + "`" * 2000 + "[" * 2000 + "\n"] * 5, "word " * 20000)
    send(page, "Much")
    answered(page)


def test_errors_are_shown(page, url):
    page.goto(url + "/")
    page.evaluate("settings.temperature = '7'")
    send(page, "Hi")
    page.get_by_role("alert").wait_for()
    assert "temperature" in page.get_by_role("alert").inner_text()
    page.evaluate("settings.temperature = ''")
    send(page, "Hi again")
    answered(page)


def test_phone(browser, url):
    context = browser.new_context(viewport={"width": 390, "height": 780}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(url + "/")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    send(page, "What is 47 + 38?")
    answered(page)
    picture(page, "phone")
    assert not page.get_by_role("button", name="New conversation").is_visible()
    page.locator("#menu").tap()
    page.get_by_role("button", name="New conversation").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


def test_settings_are_kept(page, url):
    page.goto(url + "/")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest thinking, tokens").fill("3")
    page.get_by_label("Top p").fill("0.9")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Colours").select_option("dark")
    page.get_by_role("button", name="Save").click()
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "What is 47 + 38?")
    body = json.loads(asked.value.post_data)
    assert body["top_p"] == 0.9 and "temperature" not in body  # what nobody has set is the model's
    assert body["max_reasoning_tokens"] == 3 and body["messages"][0] == {"role": "system", "content": "Be brief."}
    answered(page)


def test_keyboard_alone(page, url):
    page.goto(url + "/")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    answered(page)
    assert page.locator(".turn.user .body").inner_text() == "first line\nsecond line"


SLOW_ANSWER = """parts => {
  window.fetch = () => Promise.resolve(new Response(new ReadableStream({ async start(stream) {
    for (const part of parts) {
      stream.enqueue(new TextEncoder().encode(part));
      await new Promise(done => setTimeout(done, 150));
    }
    stream.close();
  } })));
}"""


def test_focus_is_where_a_keyboard_expects_it(browser, page, url):
    page.goto(url + "/")
    chunks = [{"choices": [{"index": 0, "delta": {"reasoning_content": f"thought {i} "}, "finish_reason": None}]}
              for i in range(10)]
    page.evaluate(SLOW_ANSWER, [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + [stream_of("It is 85.")])
    page.keyboard.type("What is 47 + 38?")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # on Send, in whose place there is Stop now
    assert page.evaluate("document.activeElement.id") == "stop"
    assert page.locator("#log").get_attribute("aria-busy") == "true"
    page.locator("details summary").focus()
    page.locator("details", has_text="thought 7").wait_for(state="attached")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"  # though the answer was drawn again
    answered(page)
    assert page.locator("#log").get_attribute("aria-busy") == "false"
    assert [turn.get_attribute("aria-label") for turn in page.locator("article").all()] == ["You", "Answer"]
    assert page.locator("nav [aria-current=true]").inner_text().startswith("What is 47")

    context = browser.new_context(viewport={"width": 360, "height": 640})
    phone = context.new_page()
    phone.goto(url + "/")
    menu = phone.locator("#menu")
    menu.focus()
    phone.keyboard.press("Enter")
    assert menu.get_attribute("aria-expanded") == "true"
    assert phone.evaluate("document.activeElement.id") == "new"
    phone.keyboard.press("Escape")
    assert menu.get_attribute("aria-expanded") == "false" and phone.evaluate("document.activeElement.id") == "menu"
    context.close()


def test_status(page, url):
    page.goto(url + "/status")
    page.locator("#ranks tr").nth(1).wait_for()
    assert page.locator("#ranks tr").count() == 2
    assert "tokens/s now" in page.locator("#tiles").inner_text()
    assert page.locator("#experts").is_visible()
    page.wait_for_timeout(2500)
    picture(page, "status")
    assert page.problems == [] and all(request.startswith(url) for request in page.requested)
