"""The chat page in a headless Chromium."""

import json

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import glm_int4
from glm_int4.server.page import PAGE_PATHS
from glm_int4.server.settings import LOOPBACK
from tests.server.conftest import Page, run_server


def test_a_question_is_answered_and_both_survive_a_reload(page):
    page.set(temperature="0")
    page.ask("3加5等于几?")
    page.wait_for_end()
    assert page.texts(".text") == ["3加5等于几?", "8"]
    assert "2 tokens" in page.texts(".tools")[0]
    page.ask("What is 12 plus 30?")
    page.wait_for_end()
    shown = page.texts(".text")
    assert len(shown) == 4
    assert shown[3]
    page.browser.refresh()
    assert page.texts(".text") == shown
    assert json.loads(page.browser.execute_script("return localStorage['glm-int4.settings']"))["temperature"] == "0"


def test_an_answer_is_seen_as_it_comes_and_can_be_stopped(browser, v2_engine, slow_model):
    with run_server(v2_engine, model_name="small-v2") as running:
        slow_model(running, 0.05)
        page = Page(browser, running.url)
        page.ask("你好")
        page.wait(lambda: page.texts(".running .text") and page.texts(".running .text")[0])
        first = page.texts(".running .text")[0]
        page.wait(lambda: len(page.texts(".running .text")[0]) > len(first))
        page.wait(lambda: "tokens/s" in page.find("#status").text)
        page.find("#stop").click()
        page.wait_for_end()
        running.wait_until(lambda: running.batcher.num_running == 0)
        assert "stopped" in page.texts(".tools")[0]
        text = page.texts(".text")[1]
        assert text.startswith(first)
        browser.refresh()
        assert page.texts(".text")[1] == text


def test_a_reload_in_the_middle_keeps_what_was_there_and_frees_the_slot(browser, v2_engine, slow_model):
    with run_server(v2_engine, model_name="small-v2") as running:
        slow_model(running, 0.05)
        page = Page(browser, running.url)
        page.ask("你好")
        page.wait(lambda: page.texts(".running .text") and page.texts(".running .text")[0])
        browser.refresh()
        running.wait_until(lambda: running.batcher.num_running == 0)
        assert len(page.texts(".text")) == 2
        assert page.texts(".text")[1]


def test_conversations_are_kept_apart(page):
    page.set(temperature="0")
    page.ask("我叫小明。")
    page.wait_for_end()
    page.find("#new").click()
    assert page.texts(".text") == []
    page.ask("3加5等于几?")
    page.wait_for_end()
    assert page.texts(".text") == ["3加5等于几?", "8"]
    assert page.texts("#conversations div button:first-child") == ["3加5等于几?", "我叫小明。"]
    page.browser.find_elements(By.CSS_SELECTOR, "#conversations div button")[2].click()
    assert page.texts(".text")[0] == "我叫小明。"
    page.browser.find_elements(By.CSS_SELECTOR, "#conversations div button")[3].click()
    assert page.texts("#conversations div button:first-child") == ["3加5等于几?"]


def test_markup_in_an_answer_is_text(browser, mini_server):
    page = Page(browser, mini_server.url)
    evil = (
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> **b** `c`\n"
        "```js\n<b>x</b>\n```"
    )
    stored = [{"id": "1", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": evil}]}]
    browser.execute_script("localStorage['glm-int4.conversations'] = arguments[0]", json.dumps(stored))
    browser.refresh()
    assert browser.title == "glm-int4"
    assert "<img src=x" in page.texts(".assistant .text")[0]
    assert browser.find_elements(By.CSS_SELECTOR, "#messages img, #messages script, #messages b") == []
    assert page.texts(".assistant pre code") == ["<b>x</b>"]
    assert page.texts(".assistant strong") == ["b"]


def test_language_and_colours_can_be_chosen_and_stay(page):
    page.set(language="zh", theme="dark")
    page.wait(lambda: page.find("#send").text == "发送")
    page.browser.refresh()
    assert page.find("#send").text == "发送"
    dark = page.find("body").value_of_css_property("background-color")
    page.set(language="en", theme="light")
    page.wait(lambda: page.find("#send").text == "Send")
    assert page.find("body").value_of_css_property("background-color") != dark


def test_the_system_prompt_is_sent(page, mini_server, monkeypatch):
    seen = []
    desk = mini_server.server.handler
    make = desk._make_jobs
    monkeypatch.setattr(desk, "_make_jobs", lambda request, *others: seen.append(request) or make(request, *others))
    page.set(system="Be brief.", max_tokens="3", seed="4")
    page.ask("你好")
    page.wait_for_end()
    assert [(m.role, m.content) for m in seen[0].messages] == [("system", "Be brief."), ("user", "你好")]
    assert (seen[0].max_tokens, seen[0].seed, seen[0].temperature) == (3, 4, None)


def test_old_rounds_are_left_out_when_the_context_is_full(browser, mini_int4):
    with run_server(glm_int4.load(mini_int4, device="cpu", max_length=40)) as running:
        page = Page(browser, running.url)
        page.set(temperature="0")
        for _ in range(3):
            page.ask("3加5等于几?")
            page.wait_for_end()
        assert page.texts(".assistant .text") == ["8"] * 3
        assert "left out" in page.find("#status").text


def test_a_key_is_asked_for_and_sent(browser, mini_engine):
    with run_server(mini_engine, api_key="secret") as running:
        page = Page(browser, running.url)
        page.ask("你好")
        page.wait(lambda: page.texts(".error"))
        assert "API key" in page.texts(".error .text")[0]
        page.set(api_key="secret", temperature="0")
        page.find(".again").click()
        page.wait_for_end()
        assert page.texts(".error") == []
        assert len(page.texts(".text")) == 2


@pytest.mark.parametrize(("tokens", "shown"), [(2, False), (7, False), (8, True)])
def test_the_speed_of_a_few_tokens_is_not_told(page, tokens, shown):
    page.answer_by_hand()
    page.ask("你好")
    for _ in range(tokens):
        page.say("好")
    page.wait(lambda: page.texts(".running .text") == ["好" * tokens])
    assert ("tokens/s" in page.find("#status").text) == shown
    page.end(usage={"completion_tokens": tokens})
    page.wait_for_end()
    note = page.texts(".tools")[0]
    assert f"{tokens} tokens" in note
    assert ("tokens/s" in note) == shown


def test_again_while_the_server_is_gone_keeps_the_old_answer(browser, mini_engine):
    with run_server(mini_engine) as running:
        page = Page(browser, running.url)
        page.set(temperature="0")
        page.ask("3加5等于几?")
        page.wait_for_end()
    page.find(".again").click()
    page.wait(lambda: page.texts(".error"))
    assert page.texts(".text") == ["3加5等于几?", "8The connection was lost."]
    assert [m["content"] for m in page.stored()[0]["messages"]] == ["3加5等于几?", "8"]


_FAULTS = {
    "key": 'new Response("", {status: 401})',
    "busy": 'new Response("", {status: 429})',
    "fault": 'new Response(`{"error": {"message": "out of order"}}`, {status: 500})',
    "fault in the stream": 'new Response(`data: {"error": {"message": "out of order"}}\n\n`)',
    "end before the first piece": 'new Response("")',
}


@pytest.mark.parametrize("response", _FAULTS.values(), ids=_FAULTS)
def test_again_that_fails_keeps_the_old_answer_and_says_why(page, response):
    page.answer_by_hand()
    page.ask("你好")
    page.say("old")
    page.end()
    page.wait_for_end()
    page.browser.execute_script(f"window.fetch = async () => {response}")
    page.find(".again").click()
    page.wait(lambda: page.texts(".error .fault"))
    assert page.texts(".assistant .text")[0].startswith("old")
    page.browser.refresh()
    assert page.texts(".assistant .text")[0].startswith("old")


def test_the_old_answer_stays_until_the_new_one_begins_and_when_that_is_stopped(page):
    page.answer_by_hand()
    page.ask("你好")
    page.say("old")
    page.end()
    page.wait_for_end()
    page.find(".again").click()
    assert page.texts(".running .text") == ["old"]
    page.find("#stop").click()
    page.wait_for_end()
    assert page.texts(".assistant .text") == ["old"]
    page.find(".again").click()
    page.say("new")
    page.wait(lambda: page.texts(".running .text") == ["new"])
    page.end()
    page.wait_for_end()
    assert page.texts(".text") == ["你好", "new"]
    assert page.asked() == [{"role": "user", "content": "你好"}]
    page.browser.refresh()
    assert page.texts(".text") == ["你好", "new"]


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        ("temperature", "0.5", "9"),
        ("temperature", "0.5", "-"),
        ("top_p", "0.5", "-1"),
        ("max_tokens", "7", "0"),
        ("seed", "4", "1.5"),
    ],
)
def test_escape_in_the_settings_restores_the_last_valid_one(page, name, valid, invalid):
    page.set(**{name: valid})
    page.find("#open-settings").click()
    page.find("[name=system]").send_keys("Be brief.")
    page.find(f"[name={name}]").clear()
    page.find(f"[name={name}]").send_keys(invalid, Keys.ESCAPE)
    page.wait(lambda: not page.find("#settings").is_displayed())
    page.wait(lambda: page.settings()["system"] == "Be brief.")
    assert page.settings()[name] == valid
    page.find("#open-settings").click()
    assert page.find(f"[name={name}]").get_attribute("value") == valid


def _answer_and_copy(page):
    page.answer_by_hand()
    page.ask("你好")
    page.say("to copy")
    page.end()
    page.wait_for_end()
    page.find(".tools button").click()
    page.wait(lambda: page.texts(".tools button")[0] != "Copy")
    return page.texts(".tools button")[0]


def test_an_answer_is_copied_outside_localhost_and_https(browser, mini_engine):
    with run_server(mini_engine, host_names=(*LOOPBACK, "chat.test")) as running:
        page = Page(browser, running.url.replace("127.0.0.1", "chat.test"))
        assert browser.execute_script("return !isSecureContext && !navigator.clipboard")
        assert _answer_and_copy(page) == "Copied"
        page.find("#input").send_keys(Keys.CONTROL, "v")
        assert page.find("#input").get_attribute("value") == "to copy"


@pytest.mark.parametrize("second", ["return true", "return false", "throw new Error('no')"])
def test_a_copy_that_is_refused_is_tried_another_way_and_told(page, second):
    page.browser.execute_script(
        "navigator.clipboard.writeText = async () => { throw new DOMException('no', 'NotAllowedError') };"
        f"document.execCommand = () => {{ {second} }}"
    )
    said = _answer_and_copy(page)
    assert said == "Copied" if second == "return true" else "did not allow" in said
    assert page.browser.execute_script("return document.querySelectorAll('textarea').length") == 2


@pytest.mark.parametrize("event", [{"isComposing": True}, {"keyCode": 229}], ids=["Chromium, Firefox", "Safari"])
def test_enter_at_the_end_of_a_composition_sends_nothing(page, event):
    page.answer_by_hand()
    page.find("#input").send_keys("nihao")
    press = "arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', ...arguments[1]}))"
    page.browser.execute_script(press, page.find("#input"), event)
    assert page.texts(".text") == []
    assert page.find("#input").get_attribute("value") == "nihao"
    page.browser.execute_script(press, page.find("#input"), {"keyCode": 13})
    assert page.texts(".user .text") == ["nihao"]
    page.end()
    page.wait_for_end()


def test_the_page_fits_a_phone(page):
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        page.browser.refresh()
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert not page.find("#new").is_displayed()
        page.find("#menu").click()
        page.wait(lambda: page.find("#new").is_displayed() and page.find("#new").rect["x"] >= 0)
        page.find("#new").click()
        page.wait(lambda: not page.find("#new").is_displayed())
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_comes_from_another_host(mini_server):
    for path in PAGE_PATHS:
        response = mini_server.get(path)
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "://" not in response.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
