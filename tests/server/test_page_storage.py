"""What the chat page keeps in the browser: several tabs, the earlier format, a storage that is full."""

import json

import pytest
from selenium.webdriver.common.by import By

_NAMES = "#conversations div button:first-child"
_EARLIER_LIST = "glm-int4.conversations"
_HEAR_NOTHING = "addEventListener('storage', (event) => event.stopImmediatePropagation())"


def _conversation(number, *texts):
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"id": f"{number}-x", "messages": messages}


def _keep_earlier_list(page, *conversations):
    """As earlier versions of the page kept them."""
    page.browser.execute_script("localStorage[arguments[0]] = arguments[1]", _EARLIER_LIST, json.dumps(conversations))
    page.browser.refresh()


def _fill_storage(page, leave=0):
    """Leave room for so many characters."""
    page.browser.execute_script(
        """
        let filling = "";
        for (let size = 1 << 22; size; size >>= 1) {
          try {
            localStorage.filling = filling + "x".repeat(size);
            filling = localStorage.filling;
          } catch {}
        }
        localStorage.filling = filling.slice(arguments[0]);
        """,
        leave,
    )


def _make_room(page):
    page.browser.execute_script("localStorage.removeItem('filling')")


def _reload_with(page, script):
    """Load the tab's page anew, with a script that runs before its own."""
    page.browser.execute_cdp_cmd("Page.enable", {})
    added = page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    page.browser.refresh()
    page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    page.answer_by_hand()


def _answer(page, question, text):
    page.ask(question)
    page.say(text)
    page.wait(lambda: page.texts(".running .text") == [text])


def _end(page):
    page.end()
    page.wait_for_end()


def _remove(page, name):
    entries = page.browser.find_elements(By.CSS_SELECTOR, "#conversations div")
    entries[page.texts(_NAMES).index(name)].find_elements(By.CSS_SELECTOR, "button")[1].click()


class Tabs:
    """Two tabs with the page; ``show`` goes to one, in which the page's methods then act."""

    def __init__(self, page):
        self._browser = page.browser
        url = self._browser.current_url
        self._handles = [self._browser.current_window_handle]
        self._browser.switch_to.new_window("tab")
        self._browser.get(url)
        self._handles.append(self._browser.current_window_handle)
        for tab in (1, 0):
            self.show(tab)
            page.answer_by_hand()

    def show(self, tab):
        self._browser.switch_to.window(self._handles[tab])

    def close(self):
        self.show(1)
        self._browser.close()
        self.show(0)


@pytest.fixture
def tabs(page):
    """Both tabs show the conversation ``first``; ``second`` is the other one."""
    _keep_earlier_list(page, _conversation(2, "first", "one"), _conversation(1, "second", "two"))
    tabs = Tabs(page)
    yield tabs
    tabs.close()


def test_a_conversation_made_in_another_tab_stays_when_this_one_answers(page, tabs):
    _answer(page, "here", "a")
    tabs.show(1)
    page.find("#new").click()
    _answer(page, "made there", "b")
    _end(page)
    tabs.show(0)
    page.wait(lambda: "made there" in page.texts(_NAMES))
    assert page.texts(".running .text") == ["a"]
    page.say("bc")
    page.wait(lambda: page.texts(".running .text") == ["abc"])
    _end(page)
    for tab in (0, 1):
        tabs.show(tab)
        page.browser.refresh()
        assert page.texts(_NAMES) == ["made there", "first", "second"]
        assert page.texts(".text") == ["made there", "b"]
        page.browser.find_elements(By.CSS_SELECTOR, _NAMES)[1].click()
        assert page.texts(".text") == ["first", "one", "here", "abc"]


def test_a_conversation_deleted_in_another_tab_goes_while_this_one_answers(page, tabs):
    _answer(page, "here", "a")
    tabs.show(1)
    _remove(page, "second")
    tabs.show(0)
    page.wait(lambda: page.texts(_NAMES) == ["first"])
    page.say("b")
    page.wait(lambda: page.texts(".running .text") == ["ab"])
    _end(page)
    page.browser.refresh()
    assert page.texts(_NAMES) == ["first"]
    assert page.texts(".text") == ["first", "one", "here", "ab"]


def test_a_conversation_that_went_on_in_another_tab_is_shown_while_this_one_answers(page, tabs):
    _answer(page, "here", "a")
    tabs.show(1)
    page.browser.find_elements(By.CSS_SELECTOR, _NAMES)[1].click()
    _answer(page, "there", "b")
    _end(page)
    tabs.show(0)
    page.browser.find_elements(By.CSS_SELECTOR, _NAMES)[1].click()
    page.wait(lambda: page.texts(".text") == ["second", "two", "there", "b"])
    page.browser.find_elements(By.CSS_SELECTOR, _NAMES)[0].click()
    assert page.texts(".running .text") == ["a"]
    _end(page)
    page.browser.refresh()
    page.browser.find_elements(By.CSS_SELECTOR, _NAMES)[1].click()
    assert page.texts(".text") == ["second", "two", "there", "b"]


@pytest.mark.parametrize("last", [0, 1], ids=["the first ends last", "the second ends last"])
def test_two_tabs_that_answer_in_one_conversation_lose_neither_text(page, tabs, last):
    for tab, question, text in ((0, "question 0", "answer 0"), (1, "question 1", "answer 1")):
        tabs.show(tab)
        _answer(page, question, text)
    for tab in (1 - last, last):
        tabs.show(tab)
        page.say(" more")
        _end(page)
    expected = ["first", "one", "question 0", "answer 0 more", "question 1", "answer 1 more"]
    for tab in (0, 1):
        tabs.show(tab)
        page.wait(lambda: page.texts(".text") == expected)
    page.browser.refresh()
    assert page.texts(".text") == expected


def test_both_texts_are_kept_when_neither_tab_has_heard_of_the_other(page, tabs):
    for tab in (0, 1):
        tabs.show(tab)
        _reload_with(page, _HEAR_NOTHING)
        _answer(page, f"question {tab}", f"answer {tab}")
    for tab in (0, 1):
        tabs.show(tab)
        _end(page)
    page.browser.refresh()
    assert page.texts(".text") == ["first", "one", "question 0", "answer 0", "question 1", "answer 1"]


@pytest.mark.parametrize("heard", [True, False], ids=["at once", "before this tab hears of it"])
def test_a_conversation_deleted_elsewhere_while_it_is_answered_stays_deleted(page, tabs, heard):
    if not heard:
        _reload_with(page, _HEAR_NOTHING)
    _answer(page, "here", "a")
    tabs.show(1)
    _remove(page, "first")
    tabs.show(0)
    if heard:
        page.wait_for_end()
        assert page.texts(_NAMES) == ["second"]
    else:
        _end(page)
    page.browser.refresh()
    assert page.texts(_NAMES) == ["second"]


def test_who_reads_further_up_is_not_moved_by_another_tab(page, tabs):
    _answer(page, "long", "line\n" * 200)
    page.browser.execute_script("document.querySelector('#messages').scrollTop = 100")
    tabs.show(1)
    _answer(page, "there", "b")
    tabs.show(0)
    page.wait(lambda: "b" in page.texts(".text"))
    assert page.browser.execute_script("return document.querySelector('#messages').scrollTop") == 100
    _end(page)
    tabs.show(1)
    _end(page)


def test_settings_of_another_tab_are_not_undone_by_this_one(page, tabs):
    tabs.show(1)
    page.set(temperature="0.5", language="zh")
    tabs.show(0)
    page.wait(lambda: page.find("#send").text == "发送")
    page.set(seed="4")
    assert page.settings()["temperature"] == "0.5"


def test_the_earlier_list_is_taken_over_once(page):
    _keep_earlier_list(page, _conversation(2, "b", "B"), _conversation(1, "a", "A", "aa", "AA"))
    assert page.browser.execute_script("return localStorage[arguments[0]]", _EARLIER_LIST) is None
    for _ in range(2):
        assert page.texts(_NAMES) == ["b", "a"]
        page.browser.find_elements(By.CSS_SELECTOR, _NAMES)[1].click()
        assert page.texts(".text") == ["a", "A", "aa", "AA"]
        page.browser.refresh()
    _remove(page, "b")
    page.browser.refresh()
    assert page.texts(_NAMES) == ["a"]


def test_a_list_that_an_earlier_page_writes_again_adds_what_is_missing(page):
    _keep_earlier_list(page, _conversation(1, "a", "A"))
    page.answer_by_hand()
    _answer(page, "here", "B")
    _end(page)
    _keep_earlier_list(page, _conversation(2, "c", "C"), _conversation(1, "a", "A", "there", "D"))
    assert page.texts(_NAMES) == ["c", "a"]
    page.browser.find_elements(By.CSS_SELECTOR, _NAMES)[1].click()
    assert page.texts(".text") == ["a", "A", "here", "B", "there", "D"]


def test_the_earlier_list_stays_while_there_is_no_room_for_records(page):
    _keep_earlier_list(page)
    many = [_conversation(number, f"question {number}", "x" * 20) for number in range(60, 0, -1)]
    page.browser.execute_script("localStorage[arguments[0]] = arguments[1]", _EARLIER_LIST, json.dumps(many))
    _fill_storage(page)
    names = [f"question {number}" for number in range(60, 0, -1)]
    page.browser.refresh()
    assert page.texts(_NAMES) == names
    _remove(page, "question 60")
    page.browser.refresh()
    assert page.texts(_NAMES) == names[1:]
    _make_room(page)
    page.browser.refresh()
    assert page.texts(_NAMES) == names[1:]
    assert page.browser.execute_script("return localStorage[arguments[0]]", _EARLIER_LIST) is None


def test_the_warning_of_a_full_storage_stays_until_there_is_room(page):
    page.answer_by_hand()
    _answer(page, "kept", "a")
    _end(page)
    page.find("#new").click()
    _fill_storage(page)
    _answer(page, "not kept", "b")
    _end(page)
    assert "storage is full" in page.find("main").text
    page.find("#new").click()
    assert "storage is full" in page.find("main").text
    _make_room(page)
    _remove(page, "kept")
    assert "storage is full" not in page.find("main").text
    page.browser.refresh()
    assert page.texts(".text") == ["not kept", "b"]


def test_settings_close_and_hold_when_the_storage_is_full(page):
    _fill_storage(page)
    page.find("#open-settings").click()
    page.find("[name=language] [value=zh]").click()
    page.find("#settings-form > button").click()
    page.wait(lambda: page.find("#send").text == "发送")
    assert "浏览器存储已满" in page.find("main").text
    _make_room(page)
    page.set(language="en")
    assert "storage is full" not in page.find("main").text


def test_the_page_works_where_storage_is_forbidden(page):
    script = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError') }})"
    _reload_with(page, script)
    _answer(page, "here", "a")
    _end(page)
    assert page.texts(".text") == ["here", "a"]
    page.find("#new").click()
    _remove(page, "here")
    assert page.texts(_NAMES) == ["New chat"]


def test_a_page_that_comes_back_from_the_history_shows_what_changed_meanwhile(page):
    _keep_earlier_list(page, _conversation(2, "b", "B"), _conversation(1, "a", "A"))
    page.browser.execute_script("window.kept = true")
    page.browser.get(page.browser.current_url + "icon.svg")
    page.browser.execute_script(
        "for (const k of Object.keys(localStorage)) if (k.includes('2-x')) delete localStorage[k]"
    )
    page.browser.back()
    assert page.browser.execute_script("return window.kept")  # the same page, not loaded anew
    page.wait(lambda: page.texts(_NAMES) == ["a"])
    page.faults()  # the file in between has no icon of its own
