"""The chat page in a headless Chromium."""

import json
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import glm_int4
from tests.server.conftest import run_server


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Driver(driver))
    yield driver
    driver.quit()


class Page:
    """What a person does and sees."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get(url)
        browser.execute_script("localStorage.clear()")
        browser.refresh()

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.browser.execute_script(script, selector)

    def wait(self, condition):
        return WebDriverWait(self.browser, 60, poll_frequency=0.02).until(lambda _: condition())

    def ask(self, question):
        self.find("#input").send_keys(question, Keys.ENTER)

    def wait_for_end(self):
        self.wait(lambda: self.find("#send").is_displayed() and not self.texts(".running"))

    def set(self, **fields):
        self.find("#open-settings").click()
        for name, value in fields.items():
            field = self.find(f"[name={name}]")
            if field.tag_name == "select":
                field.find_element(By.CSS_SELECTOR, f"[value={value}]").click()
            else:
                field.clear()
                field.send_keys(value)
        self.find("#settings-form > button").click()
        # They are saved, and everything is shown anew, a moment after the click.
        saved = "return JSON.parse(localStorage['glm-int4.settings'] ?? '{}')"
        self.wait(lambda: fields.items() <= self.browser.execute_script(saved).items())

    def faults(self):
        return [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def page(browser, mini_server):
    page = Page(browser, mini_server.url)
    page.faults()  # of other tests
    yield page
    assert page.faults() == []


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
        assert "tokens/s" in page.find("#status").text
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
    make = desk._make_pending
    monkeypatch.setattr(desk, "_make_pending", lambda request: seen.append(request) or make(request))
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
    for path in ("/", "/app.js", "/render.js", "/store.js", "/stream.js", "/texts.js", "/style.css", "/icon.svg"):
        response = mini_server.get(path)
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "://" not in response.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
