"""The page in a real browser: headless Chromium, driven by selenium."""

from __future__ import annotations

import json

import pytest

from spiral_trl.hub.report import write_report
from spiral_trl.records import Ending


pytestmark = pytest.mark.browser


@pytest.fixture
def open_page(browser, page):
    """Opens the page at a link, in a window size and colour scheme, with a clean log."""

    def open_page(link="", width=1280, scheme="light", path=page, script=True):
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        browser.get("about:blank")
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(path.as_uri() + link)
        return browser

    yield open_page
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def press(browser, key):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(key).perform()


def where(browser):
    return browser.find_element("id", "where").text


def shown_turns(browser):
    return [turn.text for turn in browser.find_elements("css selector", ".turn") if turn.is_displayed()]


def test_no_console_message_and_no_request(open_page, page):
    browser = open_page()
    assert browser.get_log("browser") == []
    requested = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in requested
    assert [url for url in requested if url != page.as_uri() and not url.startswith("data:")] == []


def test_arrow_keys_step_through_turns_and_games(open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page()
    assert where(browser) == "Game 1 of 12, turn 1 of 2"
    assert len(shown_turns(browser)) == 1 and "player 0 card J history none" in shown_turns(browser)[0]
    press(browser, Keys.ARROW_RIGHT)
    assert where(browser) == "Game 1 of 12, turn 2 of 2"
    assert "player 1 card Q history check" in shown_turns(browser)[0]
    assert browser.current_url.endswith("#game=1&turn=2")
    press(browser, Keys.ARROW_RIGHT)
    assert where(browser) == "Game 2 of 12, turn 1 of 2"
    press(browser, Keys.ARROW_LEFT)
    press(browser, Keys.ARROW_LEFT)
    press(browser, Keys.ARROW_LEFT)
    assert where(browser) == "Game 1 of 12, turn 1 of 2"
    assert not browser.find_element("id", "previous").is_enabled()


def test_buttons_are_reached_and_used_by_keyboard(open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page()
    browser.execute_script("document.getElementById('ending').focus()")
    press(browser, Keys.TAB)  # Previous is disabled on the first turn and skipped
    assert browser.switch_to.active_element.get_attribute("id") == "next"
    press(browser, Keys.ENTER)
    assert where(browser) == "Game 1 of 12, turn 2 of 2"


def test_a_link_opens_its_game_and_turn(open_page):
    browser = open_page("#game=3&turn=2")
    assert where(browser) == "Game 3 of 12, turn 2 of 3"
    assert "player 1 card J history check" in shown_turns(browser)[0]
    assert not any(end.is_displayed() for end in browser.find_elements("css selector", ".end"))
    browser.execute_script("location.hash = 'game=4&turn=2'")
    assert "no action in square brackets" in browser.find_element("id", "viewer").text
    assert "The game ended by an illegal reply" in browser.find_element("id", "viewer").text
    assert where(browser) == "Game 4 of 12, turn 2 of 2"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("#game=99&turn=1", "Game 1 of 12, turn 1 of 2"),
        ("#game=3&turn=99", "Game 3 of 12, turn 3 of 3"),
        ("#game=3&turn=-1", "Game 3 of 12, turn 1 of 3"),
        ("#game=x", "Game 1 of 12, turn 1 of 2"),
        ("#game=3", "Game 3 of 12, turn 1 of 3"),
        ("#game=<img src=x>", "Game 1 of 12, turn 1 of 2"),
    ],
)
def test_links_that_lead_nowhere_do_no_harm(open_page, link, expected):
    browser = open_page(link)
    assert where(browser) == expected
    assert browser.get_log("browser") == []


def test_filter_by_ending(open_page):
    from selenium.webdriver.support.ui import Select

    browser = open_page()
    Select(browser.find_element("id", "ending")).select_by_value("illegal")
    assert where(browser) == "Game 4 of 12, turn 1 of 2"
    browser.find_element("id", "next").click()
    assert where(browser) == "Game 4 of 12, turn 2 of 2"
    assert not browser.find_element("id", "next").is_enabled()
    Select(browser.find_element("id", "ending")).select_by_value("")
    browser.find_element("id", "next").click()
    assert where(browser) == "Game 5 of 12, turn 1 of 1"
    Select(browser.find_element("id", "pick")).select_by_value("1")
    assert where(browser) == "Game 2 of 12, turn 1 of 2"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_horizontal_scroll_at_390_pixels(open_page, scheme):
    browser = open_page("#game=4&turn=2", width=390, scheme=scheme)
    assert browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
    )
    assert len(sizes) > 50 and min(sizes) >= 9
    wide = browser.execute_script(
        "return [...document.querySelectorAll('svg text')].filter(t => {"
        " const a = t.getBoundingClientRect(), b = t.closest('.panel').getBoundingClientRect();"
        " return a.left < b.left || a.right > b.right; }).map(t => t.textContent)"
    )
    assert wide == []


def test_a_long_unbroken_reply_does_not_widen_the_page(open_page, metrics, make_episode, tmp_path):
    episode = make_episode(1, "JQ", [("x" * 5000, None, "y" * 500)], (-2, 2), Ending.ILLEGAL)
    write_report(metrics, [episode], tmp_path / "long.html")
    browser = open_page(width=390, path=tmp_path / "long.html")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390


def test_dark_mode_changes_page_and_pictures(open_page):
    def colors(scheme):
        browser = open_page(scheme=scheme)
        return browser.execute_script(
            "return [getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('svg text')).fill,"
            " getComputedStyle(document.querySelector('svg path[style*=\"stroke: var(--blue)\"]')).stroke]"
        )

    light, dark = colors("light"), colors("dark")
    assert light[0] == "rgb(246, 247, 249)" and dark[0] == "rgb(17, 20, 24)"
    assert light[2] == "rgb(0, 114, 178)" and dark[2] == "rgb(86, 180, 233)"
    assert light[1] != dark[1]


def test_hostile_replies_run_nothing(open_page, metrics, make_episode, tmp_path):
    attack = "</pre></script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    episode = make_episode(1, "JQ", [(attack, None, attack)], (-2, 2), Ending.ILLEGAL)
    write_report(metrics, [episode], tmp_path / "hostile.html")
    browser = open_page(path=tmp_path / "hostile.html")
    assert "owned" not in browser.title
    assert browser.find_element("css selector", ".reply pre").text == attack
    assert browser.get_log("browser") == []


def test_without_script_every_game_opens_in_full(open_page):
    browser = open_page(script=False)
    assert not browser.find_element("id", "next").is_displayed()
    games = browser.find_elements("css selector", ".game")
    assert len(games) == 12 and all(game.is_displayed() for game in games)
    games[2].find_element("css selector", "summary").click()
    assert len(shown_turns(browser)) == 3
    assert "Returns:" in games[2].text
