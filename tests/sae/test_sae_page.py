"""The page of an SAE report: its file, and what a reader sees and does in headless Chromium."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import time

import numpy as np
import pytest
from made_report import MEASURES, make_report

from spiral_trl.errors import UsageError
from spiral_trl.sae.page import script_text, write_page, write_site


browser_test = pytest.mark.browser

HOSTILE = "</script><script>document.title='owned'</script><!--<img src=x onerror=\"document.title='owned'\">"
UNSEEN = "a\u202egnp.exe\u0000\u2028\u2029\u0007b\ud800"
UNSEEN_SHOWN = "a\\u202egnp.exe\\u0000\\u2028\\u2029\\u0007b\\ud800"


def parts_of(page):
    """The parts of a page, unpacked, by name."""
    found = re.findall(r'<script type="text/plain" id="([^"]+)">([^<]*)</script>', page.read_text(encoding="utf-8"))
    return {name: gzip.decompress(base64.b64decode(part)) for name, part in found}


@pytest.fixture(scope="module")
def data():
    return make_report(layers=4, width=24)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write_page(make_report(layers=4, width=24), folder / "game.html")
    write_page(make_report(layers=12, width=60, games=False, edges=3600, seed=1), folder / "text.html")
    return folder


# ---- the file ----


def test_the_parts_hold_the_report(data, pages):
    parts = parts_of(pages / "game.html")
    core = json.loads(parts["core"])
    count = core["edge_count"]
    assert count == len(data["edges"]) and core["measures"] == list(MEASURES)
    ends = np.frombuffer(parts["edges"], "<i4", 2 * count).reshape(2, count)
    values = np.frombuffer(parts["edges"], "<f4", offset=8 * count).reshape(len(MEASURES), count)
    assert ends.T.tolist() == [edge[:2] for edge in data["edges"]]
    np.testing.assert_allclose(values.T, [edge[2] for edge in data["edges"]], rtol=2.0**-12)
    shard = json.loads(parts[f"shard-{core['features']['shard'][30]}"])
    assert shard["f30"]["texts"] == data["features"][30]["texts"]
    assert core["features"]["explanation"][30] == data["features"][30]["explanation"]


def test_values_keep_the_decimals_that_are_shown(tmp_path):
    # Cut to twelve bits, the first would be shown as 0.974
    wanted = [0.9734533429145813, 0.2, -0.34349998, 0.0625, *np.random.default_rng(0).uniform(-1, 1, 2000).tolist()]
    data = {**make_report(layers=2, width=4), "edges": [[0, 5, [value] * len(MEASURES)] for value in wanted]}
    write_page(data, tmp_path / "page.html")
    kept = np.frombuffer(parts_of(tmp_path / "page.html")["edges"], "<f4", len(wanted), offset=8 * len(wanted))
    assert [f"{value:.3f}" for value in kept] == [f"{value:.3f}" for value in np.float32(wanted)]
    assert np.mean((kept.view(np.uint32) & 0x7FF) == 0) > 0.8


def test_no_text_of_a_model_stands_in_the_file(tmp_path):
    data = make_report(layers=2, width=6)
    data["title"] = HOSTILE
    data["features"][0]["explanation"] = HOSTILE
    data["features"][0]["texts"][0]["tokens"][0] = HOSTILE + UNSEEN
    data["games"]["summary"] = HOSTILE
    write_page(data, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "owned'</script>" not in text and "<img" not in text and "\u2028" not in text
    # Every script that the document opens, it closes; and one of them runs
    assert text.count("<script") == text.count("</script>") == len(parts_of(tmp_path / "page.html")) + 1


def test_the_script_parses_no_markup_and_no_code():
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
    ):
        assert way not in script_text()
    assert "</script" not in script_text() and "fetch(" not in script_text() and "XMLHttpRequest" not in script_text()


def test_the_same_report_gives_the_same_bytes(data, tmp_path):
    for name in ("a.html", "b.html"):
        write_page(data, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_numbers_that_are_not_finite_are_missing(tmp_path):
    data = make_report(layers=2, width=4)
    data["features"][0] |= {"density": math.nan, "mean": np.float32(0.5)}
    data["edges"][0][2][0] = None
    data["edges"][0][2][1] = math.inf
    data["comparison"]["gate"]["l0"] = {"before": math.nan, "after": np.float64(2.5)}
    write_page(data, tmp_path / "page.html")
    parts = parts_of(tmp_path / "page.html")
    core = json.loads(parts["core"])
    assert core["features"]["density"][0] is None and core["features"]["mean"][0] == 0.5
    assert core["comparison"]["gate"]["l0"] == {"before": None, "after": 2.5}
    values = np.frombuffer(parts["edges"], "<f4", offset=8 * core["edge_count"]).reshape(len(MEASURES), -1)
    assert np.isnan(values[:2, 0]).all() and not np.isnan(values[2:, 0]).any()


def test_a_link_that_is_no_web_address_is_dropped(tmp_path):
    data = make_report(layers=2, width=4)
    for feature, link in zip(
        data["features"], ("javascript:alert(1)", "https://www.neuronpedia.org/x", "file:///x"), strict=False
    ):
        feature["neuronpedia"] = link
    write_page(data, tmp_path / "page.html")
    links = json.loads(parts_of(tmp_path / "page.html")["core"])["features"]["neuronpedia"]
    assert links[:3] == [None, "https://www.neuronpedia.org/x", None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("edges"), "report data without edges"),
        (lambda data: data.update(flows=data.pop("flow")), "without flow; did you mean 'flows'?"),
        (lambda data: data.update(version=2), "version 2, this page shows version 1"),
        (lambda data: data.update(measures=[]), "without a measure"),
        (lambda data: data["edges"].append([0, 48, [0.0] * 7]), "an edge names feature 48 of 48"),
        (lambda data: data["edges"].append([-1, 3, [0.0] * 7]), "an edge names feature -1 of 48"),
        (lambda data: data["edges"].append([0, 30, [0.5]]), "edge 0 to 30 has 1 values for 7 measures"),
        (lambda data: data["communities"][0]["features"].append(99), "community 3 names feature 99"),
        (lambda data: data["prompts"][0]["active"].append([77, 0, 1.0]), "prompt 'game 0/turn 1' names feature 77"),
        (lambda data: data["features"].append(data["features"][0]), "feature 0/0 stands twice"),
        (lambda data: data.update(layers=[0]), "feature 1/1 is of a layer that is not in layers"),
    ],
)
def test_data_that_cannot_be_shown_is_refused(tmp_path, change, message):
    data = make_report(layers=2, width=24)
    change(data)
    with pytest.raises(UsageError, match=re.escape(message)):
        write_page(data, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_site_is_an_index_and_its_shards(tmp_path):
    data = make_report(layers=6, width=200, edges=2000)
    write_site(data, tmp_path / "site")
    shards = sorted(path.name for path in (tmp_path / "site" / "data").iterdir())
    assert "edges.js" in shards and len(shards) > 3
    name, part = re.fullmatch(
        r'reportPart\("([^"]+)","([A-Za-z0-9+/=]+)"\);\n', (tmp_path / "site/data/shard-1.js").read_text()
    ).groups()
    assert name == "shard-1" and json.loads(gzip.decompress(base64.b64decode(part)))
    write_site(make_report(layers=2, width=4), tmp_path / "site")
    assert sorted(path.name for path in (tmp_path / "site" / "data").iterdir()) == ["edges.js", "shard-0.js"]


# ---- in a browser ----


@pytest.fixture
def open_page(browser, pages):
    """Opens a page at a link, in a window size and colour scheme, with a clean log, and waits until it is drawn."""

    def open_page(link="", page="game.html", width=1280, height=900, scheme="light", path=None, motion="reduce"):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get("about:blank")
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        # A browser remembers some fifty places, after which going back skips some
        browser.execute_cdp_cmd("Page.resetNavigationHistory", {})
        browser.get((path or pages / page).as_uri() + link)
        wait_for(browser, "return document.querySelector('#sections a[aria-current], #main h1, #main .warn') !== null")
        return browser

    yield open_page
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def wait_for(browser, script, *args, seconds=10.0):
    """Waits until the script answers something true, and gives it."""
    end = time.monotonic() + seconds
    while not (answer := browser.execute_script(script, *args)):
        assert time.monotonic() < end, f"never true: {script}; {browser.get_log('browser')}"
        time.sleep(0.02)
    return answer


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def mouse(browser, kind, x, y, held=True):
    browser.execute_cdp_cmd(
        "Input.dispatchMouseEvent",
        {"type": kind, "x": x, "y": y, "button": "left", "buttons": int(held), "clickCount": 1},
    )


def click_at(browser, x, y):
    mouse(browser, "mouseMoved", x, y, held=False)
    mouse(browser, "mousePressed", x, y)
    mouse(browser, "mouseReleased", x, y, held=False)


def requested(browser):
    """What was requested since the log was read last, pictures within the page aside."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]


def go(browser, link):
    browser.execute_script("location.hash = arguments[0]", link)


def title_is(browser, text):
    wait_for(browser, "return document.querySelector('#main h1')?.textContent === arguments[0]", text)


def shown(browser):
    """Features and relations in the graph."""
    return browser.execute_script("return report.graph.counts()")


def choose(browser, name, value):
    script = "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event(arguments[2]))"
    browser.execute_script(script, name, value, "input" if name == "threshold" else "change")


VIEWS = {
    "": "Kuhn poker, before and after self-play",
    "#/games": "Features and the game",
    "#/compare": "Before and after self-play",
    "#/ablation": "Ablation",
    "#/flow": "Flow between layers",
    "#/features?q=king": "Features",
    "#/communities": "Communities",
    "#/community/5": "“checks” “check”",
    "#/prompts": "Prompts",
    "#/prompt/game%202%2Fturn%201": "game 2/turn 1",
    "#/2/9": "“bet” “bets”",
}


@browser_test
@pytest.mark.parametrize("link", VIEWS)
def test_every_view_opens_by_its_link_in_both_themes_and_requests_nothing(open_page, pages, link):
    for scheme in ("light", "dark"):
        browser = open_page(link, scheme=scheme)
        title = wait_for(browser, "return document.querySelector('#main h1')?.textContent")
        assert set(re.findall(r"\w+", title)) == set(re.findall(r"\w+", VIEWS[link]))
        browser.execute_script("window.scrollTo(0, 1e6)")
        time.sleep(0.1)
        assert browser.get_log("browser") == []
        assert low_contrast(browser) == []
    page = (pages / "game.html").as_uri()
    assert {url.split("#")[0] for url in requested(browser)} == {page}
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    policy = browser.execute_script("return document.querySelector('meta[http-equiv]').content")
    assert policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy


# Text whose colour stands out from what is behind it by less than 4.5, by the formula of WCAG 2; large text by 3
LOW_CONTRAST = """
const pen = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d', { willReadFrequently: true });
const rgba = (color) => { pen.clearRect(0, 0, 1, 1); pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); const d = pen.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; };
const over = (top, low) => [0, 1, 2].map((i) => top[i] * top[3] + low[i] * (1 - top[3]));
const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
const behind = (e) => { const own = e ? rgba(getComputedStyle(e).backgroundColor) : [255, 255, 255, 1]; return !e ? own.slice(0, 3) : own[3] === 1 ? own.slice(0, 3) : over(own, behind(e.parentElement)); };
const bad = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || e.closest('script, style, noscript, title, .visually-hidden, .skip') || !e.checkVisibility()) continue;
  const style = getComputedStyle(e), back = behind(e), svg = e instanceof SVGElement;
  const front = over(rgba(svg ? style.fill : style.color), back), [a, b] = [light(front), light(back)].sort((p, q) => q - p);
  if ((a + .05) / (b + .05) < 4.5) bad.push([walk.currentNode.data.slice(0, 30), e.className.baseVal ?? e.className, ((a + .05) / (b + .05)).toFixed(2)]);
}
return bad;
"""


def low_contrast(browser):
    return browser.execute_script(LOW_CONTRAST)


@browser_test
def test_the_check_of_contrast_sees_grey_on_grey(open_page):
    browser = open_page("#/flow")
    browser.execute_script("const p = document.querySelector('#main p'); p.style.color = '#999'")
    assert [found[0] for found in low_contrast(browser)] == ["From each layer to the next: t"]


@browser_test
@pytest.mark.parametrize("link", VIEWS)
def test_no_view_is_wider_than_a_phone(open_page, link):
    browser = open_page(link, width=390, height=844)
    wait_for(browser, "return document.querySelector('#main h1')")
    time.sleep(0.1)
    assert browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]


@browser_test
def test_the_start_page_puts_the_game_first(open_page):
    browser = open_page()
    heads = browser.execute_script("return [...document.querySelectorAll('#main h2')].map((h) => h.textContent)")
    assert heads[:3] == ["Features and the game", "What self-play changed", "Flow between layers"]
    text = browser.find_element("id", "main").text
    assert "31 of 96 features changed beyond noise" in text and "0.41 [0.35, 0.47]" in text
    assert "Unexplained variance" in text and "Tokens read" in text and "1,048,576" in text
    without = open_page(page="text.html")
    heads = without.execute_script("return [...document.querySelectorAll('#main h2')].map((h) => h.textContent)")
    assert heads[0] == "Flow between layers"
    links = without.execute_script("return [...document.querySelectorAll('#sections a')].map((a) => a.textContent)")
    assert links == ["Overview", "Features", "Communities", "Prompts", "Flow"]


@browser_test
def test_label_counts_are_those_of_the_features(open_page, data):
    browser = open_page()
    rows = browser.execute_script(
        "return [...document.querySelector('.stack-bar').closest('table').rows].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    labels = [label.lower() for label in rows[0][2:]]
    for layer, row in zip(data["layers"], rows[1:], strict=True):
        expected = [sum(f["l"] == layer and f["label"] == label for f in data["features"]) for label in labels]
        assert [int(cell) for cell in row[2:]] == expected


@browser_test
def test_a_feature_is_found_and_opened_by_its_link(open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page()
    press(browser, "/")
    assert browser.switch_to.active_element.get_attribute("id") == "search"
    press(browser, "KING")
    found = wait_for(browser, "return [...document.querySelectorAll('#found li')].map((li) => li.textContent)")
    assert len(found) == 8 and all("King" in text for text in found)
    press(browser, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP)
    chosen = browser.find_element("css selector", "#found [aria-selected=true]")
    assert browser.find_element("id", "search").get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    name = chosen.find_element("css selector", "small").text
    press(browser, Keys.ENTER)
    wait_for(browser, "return document.querySelector('.card')")
    assert browser.current_url.endswith(f"#/{name}")
    layer, feature = name.split("/")
    assert f"Layer {layer} · feature {feature}" in browser.find_element("css selector", ".card").text


@browser_test
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("2/9", {"2/9", "2/93"}),
        ("stands card", "badge"),
        ("<think>", {f"{layer}/{7 * n + layer}" for layer in range(4) for n in (3, 15)}),
        ("king 0/", {"0/0", "0/84"}),
        ("no such words", set()),
        ("(", set()),
    ],
)
def test_search_reads_tokens_badges_and_ids(open_page, data, query, expected):
    if expected == "badge":
        expected = {f"{f['l']}/{f['f']}" for f in data["features"] if "stands for: card" in f["badges"]}
    browser = open_page("#/features")
    go(browser, "#/features?q=" + query.replace("<", "%3C").replace(">", "%3E"))
    count = "1 feature." if len(expected) == 1 else f"{len(expected)} features."
    wait_for(browser, "return document.querySelector('#main [role=status]').textContent === arguments[0]", count)
    ids = browser.execute_script(
        "return [...document.querySelectorAll('#main tbody small')].map((s) => s.textContent)"
    )
    assert set(ids) == expected
    assert ids[:1] == [query] or query != "2/9"
    assert browser.get_log("browser") == []


@browser_test
def test_search_reads_explanations(open_page):
    browser = open_page("#/features?q=city+jerusalem&layer=3", page="text.html")
    names = browser.execute_script(
        "return [...document.querySelectorAll('#main tbody .feature')].map((a) => a.textContent)"
    )
    assert len(names) == 5 and all(name.startswith("references to the city of Jerusalem3/") for name in names)


@browser_test
def test_a_card_shows_what_the_data_holds(open_page, data):
    feature = next(f for f in data["features"] if f["l"] == 2 and f["badges"] and f["label"] != "none")
    browser = open_page(f"#/2/{feature['f']}")
    wait_for(browser, "return document.querySelector('.card .texts')")
    card = browser.find_element("css selector", ".card")
    assert feature["label"] in card.text and feature["badges"][0] in card.text
    assert f"community {feature['community']}" in card.text
    browser.find_element("css selector", ".texts + button").click()
    texts = browser.find_elements("css selector", ".texts > li")
    assert len(texts) == len(feature["texts"]) == 8
    assert feature["texts"][0]["role"] in texts[0].text
    for button in browser.find_elements("css selector", ".texts button"):
        button.click()
    for shown_text, text in zip(texts, feature["texts"], strict=True):
        drawn = browser.execute_script("return arguments[0].querySelector('.text').textContent", shown_text)
        assert drawn == "".join(text["tokens"]).replace("\n", "↵").lstrip(" ")
        marked = browser.execute_script(
            "return [...arguments[0].querySelectorAll('.token')].map((t) => [t.textContent, t.title])", shown_text
        )
        active = [t.strip() for t, v in zip(text["tokens"], text["values"], strict=True) if v and t.strip()]
        assert [token for token, _ in marked if token.strip(" ↵")] == active
        peak = shown_text.find_element("css selector", ".peak")
        assert peak.text == text["tokens"][text["peak"]].strip()
        assert float(peak.get_attribute("title")) == pytest.approx(max(text["values"]), abs=0.005)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('.histogram rect')].map((r) => +r.getAttribute('height'))"
    )
    counts = feature["histogram"]["counts"]
    np.testing.assert_allclose(heights, 96 * np.log1p(counts) / np.log1p(max(counts)), rtol=1e-6)
    assert [row.text.split()[0].removeprefix("␣") for row in browser.find_elements("css selector", ".tokens tr")] == [
        token.strip() for token, _ in feature["promoted"] + feature["suppressed"]
    ]


@browser_test
def test_a_card_lists_the_neighbours_both_ways_with_every_measure(open_page, data):
    index = next(i for i, f in enumerate(data["features"]) if (f["l"], f["f"]) == (1, 8))
    browser = open_page("#/1/8")
    wait_for(browser, "return document.querySelectorAll('.neighbours').length === 2")
    tables = browser.find_elements("css selector", ".neighbours")
    for table, at, other in zip(tables, (1, 0), (0, 1), strict=True):
        edges = sorted((edge for edge in data["edges"] if edge[at] == index), key=lambda edge: -edge[2][0])
        rows = browser.execute_script(
            "return [...arguments[0].tBodies[0].rows].map((r) => [r.querySelector('small').textContent, ...[...r.cells].slice(1).map((c) => c.textContent)])",
            table,
        )
        names = [f"{data['features'][edge[other]]['l']}/{data['features'][edge[other]]['f']}" for edge in edges]
        assert [row[0] for row in rows] == names[:8]
        for row, edge in zip(rows, edges, strict=False):
            assert [float(cell.replace("−", "-")) for cell in row[1:]] == pytest.approx(edge[2], abs=6e-4)
    # A click on a head sorts by it
    tables[1].find_elements("css selector", "th button")[2].click()
    column = browser.execute_script(
        "return [...document.querySelectorAll('.neighbours')[1].tBodies[0].rows].map((r) => +r.cells[3].textContent)"
    )
    assert column == sorted(column, reverse=True)
    assert (
        browser.execute_script(
            "return document.querySelectorAll('.neighbours')[1].querySelector('[aria-sort]').textContent"
        )
        == "Jaccard"
    )


@browser_test
def test_measure_and_threshold_choose_the_relations(open_page):
    data = make_report(layers=12, width=60, games=False, edges=3600, seed=1)
    members = set(next(c for c in data["communities"] if c["id"] == 7)["features"])
    browser = open_page("#/community/7", page="text.html")
    for name, least in (("pearson", 0.3), ("jaccard", 0.2), ("mutual_information", 0.05), ("decoder_cosine", 0.15)):
        m = MEASURES.index(name)
        choose(browser, "measure", m)
        choose(browser, "threshold", least)
        used = float(browser.execute_script("return document.getElementById('threshold').value"))
        assert used == pytest.approx(least, abs=0.005)
        # The page holds values to one part in 4,096: what lies that near to the threshold may fall on either side
        inside = [e[2][m] for e in data["edges"] if e[0] in members and e[1] in members]
        low, high = (sum(abs(v) >= used * (1 + part) for v in inside) for part in (3e-4, -3e-4))
        assert shown(browser)["nodes"] == 60 and low <= (count := shown(browser)["edges"]) <= high < low + 5
        assert 10 < count < len(inside)
        assert f"measure={name}" in browser.current_url or m == 0
        assert f"{count} relations" in browser.find_element("css selector", ".told").text
    # The address holds both: a copy of it shows the same
    link, counts = browser.current_url.split("#")[1], shown(browser)
    again = open_page("#" + link, page="text.html")
    assert shown(again) == counts
    assert (
        again.execute_script("return document.getElementById('measure').selectedOptions[0].text") == "Decoder cosine"
    )
    assert again.get_log("browser") == []


@browser_test
def test_neighbours_expand_up_and_down(open_page):
    data = make_report(layers=12, width=60, games=False, edges=3600, seed=1)
    index = {(f["l"], f["f"]): i for i, f in enumerate(data["features"])}
    browser = open_page("#/5/82", page="text.html")
    choose(browser, "reach", 1)
    focus = index[5, 82]
    near = {e[0] for e in data["edges"] if e[1] == focus and e[2][0] >= 0.1} | {
        e[1] for e in data["edges"] if e[0] == focus and e[2][0] >= 0.1
    }
    assert len(near) <= 16 and shown(browser)["nodes"] == 1 + len(near)
    from selenium.webdriver.common.keys import Keys

    browser.execute_script("document.querySelector('.stage').focus()")
    press(browser, Keys.ARROW_DOWN)
    lower = browser.execute_script("return report.graph.current()")
    assert data["features"][lower]["l"] == 6
    hidden = {e[1] for e in data["edges"] if e[0] == lower and e[2][0] >= 0.1} - near - {focus}
    button = browser.find_element("css selector", ".grow:nth-of-type(2)")
    assert button.text == f"+{len(hidden)}" and "downstream" in button.get_attribute("aria-label")
    before = shown(browser)["nodes"]
    press(browser, "d")
    assert shown(browser)["nodes"] == before + min(len(hidden), 8)
    upper = {e[0] for e in data["edges"] if e[1] == lower and e[2][0] >= 0.1} - near - {focus}
    browser.find_element("css selector", ".grow").click()
    assert shown(browser)["nodes"] == before + len(hidden) + len(upper)
    next(b for b in browser.find_elements("css selector", ".controls button") if b.text == "Start over").click()
    assert shown(browser)["nodes"] == before
    assert browser.get_log("browser") == []


@browser_test
def test_a_node_opens_its_card_and_back_closes_it(open_page):
    browser = open_page("#/community/5")
    title_of = "return document.querySelector('.card .kicker').textContent"
    assert browser.execute_script(title_of) == "Community 5"
    members = browser.execute_script("return report.graph.counts().nodes")
    index = browser.execute_script("return report.graph.current()")
    click_at(browser, *browser.execute_script("return report.graph.place(arguments[0])", index))
    wait_for(browser, title_of + ".startsWith('Layer ')")
    assert "?open=" in browser.current_url and shown(browser)["nodes"] == members
    browser.back()
    wait_for(browser, title_of + " === 'Community 5'")
    browser.forward()
    wait_for(browser, title_of + ".startsWith('Layer ')")
    browser.find_element("link text", "Centre the view here").click()
    wait_for(browser, "return document.getElementById('reach')")
    assert re.search(r"#/\d+/\d+$", browser.current_url)
    browser.back()
    wait_for(browser, "return !document.getElementById('reach')")
    wait_for(browser, title_of + ".startsWith('Layer ')")
    browser.find_element("css selector", ".close").click()
    wait_for(browser, title_of + " === 'Community 5'")
    assert browser.get_log("browser") == []


@browser_test
def test_the_keyboard_walks_opens_and_closes(open_page, data):
    from selenium.webdriver.common.keys import Keys

    index = {(f["l"], f["f"]): i for i, f in enumerate(data["features"])}
    browser = open_page("#/1/8")
    browser.execute_script("document.getElementById('reach').focus()")
    press(browser, Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB)
    stage = browser.switch_to.active_element
    assert stage.get_attribute("class") == "stage" and "Arrow keys" in stage.get_attribute("aria-label")
    assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", stage) == "solid"
    current = "return report.graph.current()"
    assert browser.execute_script(current) == index[1, 8]
    assert "Feature 1/8: “bet" in browser.find_element("id", "graph-now").get_attribute("textContent")
    press(browser, Keys.ARROW_DOWN)
    below = browser.execute_script(current)
    strongest = max((e for e in data["edges"] if e[0] == index[1, 8]), key=lambda e: e[2][0])
    assert below == strongest[1]
    press(browser, Keys.ARROW_RIGHT)
    beside = browser.execute_script(current)
    assert data["features"][beside]["l"] == 2 and beside != below
    press(browser, Keys.ARROW_LEFT)
    assert browser.execute_script(current) == below
    press(browser, Keys.ENTER)
    f = data["features"][below]
    wait_for(
        browser,
        "return document.querySelector('.card').getAttribute('aria-label') === arguments[0]",
        f"Feature {f['l']}/{f['f']}",
    )
    assert browser.current_url.endswith(f"?open={f['l']}%2F{f['f']}")
    press(browser, Keys.ESCAPE)
    wait_for(browser, "return document.querySelector('.card').getAttribute('aria-label') === 'Feature 1/8'")
    press(browser, "/", "zzz", Keys.ESCAPE, Keys.ESCAPE, Keys.ESCAPE)
    assert browser.switch_to.active_element.get_attribute("id") == "main"


@browser_test
@pytest.mark.parametrize("link", ["", "#/1/8", "#/communities", "#/features"])
def test_everything_that_takes_focus_has_a_name(open_page, link):
    browser = open_page(link)
    wait_for(browser, "return document.querySelector('#main h1')")
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('a[href], button, input, select, [tabindex=\"0\"]')].filter((e) => e.checkVisibility()"
        " && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert nameless == []
    # Where the keyboard is can be seen, on each of them
    unseen = browser.execute_script(
        "return [...document.querySelectorAll('a[href], button, input, select, [tabindex=\"0\"]')].filter((e) => {"
        " e.focus({ focusVisible: true }); return document.activeElement === e && getComputedStyle(e).outlineStyle === 'none'; }).map((e) => e.outerHTML)"
    )
    assert unseen == []


@browser_test
def test_a_token_of_a_prompt_narrows_to_what_is_active_there(open_page, data):
    prompt = data["prompts"][2]
    browser = open_page("#/prompt/game%202%2Fturn%201")
    everything = {active[0] for active in prompt["active"]}
    assert shown(browser)["nodes"] == len(everything)
    browser.find_elements("css selector", ".strip .token")[4].click()
    there = {active[0] for active in prompt["active"] if active[1] == 4}
    wait_for(browser, "return report.graph.counts().nodes === arguments[0]", len(there))
    assert browser.current_url.endswith("?token=4")
    values = browser.execute_script("return [...document.querySelectorAll('.valued b')].map((b) => +b.textContent)")
    assert values == pytest.approx(sorted((a[2] for a in prompt["active"] if a[1] == 4), reverse=True), rel=0.01)
    browser.back()
    wait_for(browser, "return report.graph.counts().nodes === arguments[0]", len(everything))


@browser_test
def test_findings_of_any_form_are_shown(open_page, tmp_path):
    data = make_report(layers=2, width=6)
    data["comparison"] = {
        "summary": "Nothing is beyond noise.\n\nThe control agrees.",
        "gate": {"summary": "The dictionary transfers.", "l0": {"before": 3.25, "after": 3.5}, "passed": True},
        "tables": [{"title": "Many", "columns": ["feature", "p"], "rows": [["1/1", 0.5]] + [[f"n{i}", i / 7] for i in range(40)]}],
        "floor": [{"seed": 1, "found": 0}, {"seed": 2, "found": 1, "note": None}],
        "share": {"value": 0.5, "low": 0.25, "high": 0.75},
        "deep": {"deeper": {"summary": "Here too."}},
        "odd": [], "list": [1, 2], "nothing": None,
    }  # fmt: skip
    write_page(data, tmp_path / "page.html")
    browser = open_page("#/compare", path=tmp_path / "page.html")
    # Tables say it all; the rest is folded until it is asked for
    assert "The dictionary transfers." not in browser.find_element("id", "main").text
    browser.find_element("css selector", "#main details summary").click()
    wait_for(browser, "return document.querySelectorAll('#main details div').length > 0")
    text = browser.find_element("id", "main").text
    for part in (
        "Nothing is beyond noise.\nThe control agrees.",
        "The dictionary transfers.",
        "before 3.25, after 3.50",
        "Passed\nyes",
        "Here too.",
        "0.50 [0.25, 0.75]",
    ):
        assert part in text
    assert text.index("Many") < text.index("Gate") < text.index("Floor")
    assert browser.find_element("css selector", "table a[href='#/1/1']").is_displayed()
    assert "n39" not in text
    next(b for b in browser.find_elements("css selector", "#main button") if b.text == "Show all 41 rows").click()
    assert "n39" in browser.find_element("id", "main").text
    assert browser.get_log("browser") == []


@browser_test
@pytest.mark.parametrize(
    "link",
    [
        "#/99/1",
        "#/community/x",
        "#/prompt/%E0%A4%A",
        "#/nowhere",
        "#/1",
        "#/1/8/3",
        "#/<img src=x>",
        "#/games/2",
        "#x=%",
    ],
)
def test_links_that_lead_nowhere_say_so(open_page, link):
    browser = open_page(link)
    head = wait_for(browser, "return document.querySelector('#main h1')?.textContent")
    assert head == ("Feature 99/1 is not in this report" if link == "#/99/1" else "Nothing here has this address")
    assert browser.get_log("browser") == []


@browser_test
@pytest.mark.parametrize(
    "link", ["#/1/8?open=9/9&measure=none&least=x", "#/1/8?least=99", "#/prompt/game%202%2Fturn%201?token=999"]
)
def test_settings_that_are_none_do_no_harm(open_page, link):
    browser = open_page(link)
    wait_for(browser, "return window.report.graph?.counts().nodes > 0")
    assert browser.get_log("browser") == []


@browser_test
def test_hostile_text_shows_as_text(open_page, tmp_path):
    data = make_report(layers=2, width=6)
    feature = data["features"][7]
    feature["explanation"] = HOSTILE + UNSEEN
    feature["badges"] = [HOSTILE]
    feature["neuronpedia"] = "javascript:document.title='owned'"
    feature["texts"][0] = {
        "tokens": [HOSTILE, UNSEEN, "\u05d0\u05d1"],
        "values": [3.0, 0.0, 1.0],
        "peak": 0,
        "role": HOSTILE,
        "document": 1,
    }
    feature["promoted"] = [[HOSTILE, 1.0]]
    data["title"] = HOSTILE + UNSEEN
    data["games"]["summary"] = data["comparison"]["tables"][0]["rows"][0][0] = HOSTILE
    data["prompts"][0] = {"id": HOSTILE, "tokens": [HOSTILE], "active": [[7, 0, 1.0]]}
    data["about"]["model"] = HOSTILE
    write_page(data, tmp_path / "page.html")
    browser = open_page(f"#/1/{feature['f']}", path=tmp_path / "page.html")
    wait_for(browser, "return document.querySelector('.card .texts')")
    card = browser.execute_script("return document.querySelector('.card').textContent")
    assert card.count(HOSTILE) >= 4 and UNSEEN_SHOWN in card and "\u202e" not in card
    assert browser.find_element("css selector", ".card h1").get_attribute("textContent") == HOSTILE + UNSEEN_SHOWN
    assert browser.find_elements("link text", "Neuronpedia ↗") == []
    for link in ("", "#/games", "#/compare", "#/prompts", "#/features", "#/communities"):
        go(browser, link)
        wait_for(browser, "return document.querySelector('#main h1')")
        time.sleep(0.1)
        assert browser.execute_script("return document.querySelectorAll('#main img, #main script').length") == 0
        assert "owned" != browser.title
    browser.find_element("id", "search").send_keys("<img src=x>")
    assert browser.get_log("browser") == []


@browser_test
def test_the_theme_follows_the_system_until_one_is_chosen(open_page):
    background = "return getComputedStyle(document.body).backgroundColor"
    assert open_page(scheme="light").execute_script(background) == "rgb(246, 247, 249)"
    browser = open_page("#/1/8", scheme="dark")
    assert browser.execute_script(background) == "rgb(17, 20, 24)"
    button = browser.find_element("id", "theme")
    assert button.get_attribute("aria-label") == "Theme: system. Press to change."
    # The canvas is drawn in the theme too
    corner = (
        "const from = document.querySelector('canvas'), y = report.graph.place(report.graph.current())[1] - from.getBoundingClientRect().top;"
        "const pen = Object.assign(document.createElement('canvas'), { width: from.width, height: from.height }).getContext('2d', { willReadFrequently: true }); pen.drawImage(from, 0, 0);"
        "return [...pen.getImageData(10, y - 10, 70, 20).data].reduce((a, b) => a + b)"
    )
    dark = browser.execute_script(corner)
    button.click()
    assert browser.execute_script(background) == "rgb(246, 247, 249)"
    wait_for(browser, f"return (() => {{ {corner} }})() > {1.2 * dark}")
    button.click()
    assert button.get_attribute("aria-label") == "Theme: dark. Press to change."
    button.click()
    assert button.get_attribute("aria-label").startswith("Theme: system")
    assert browser.get_log("browser") == []


@browser_test
def test_the_graph_is_dragged_zoomed_and_fitted(open_page):
    browser = open_page("#/community/7", page="text.html")
    index = browser.execute_script("return report.graph.current()")
    place = lambda i: browser.execute_script("return report.graph.place(arguments[0])", i)  # noqa: E731
    other = next(
        i
        for i in browser.execute_script("return [...Array(720).keys()].filter((i) => report.graph.place(i))")
        if i != index
    )
    (x, y), still = place(index), place(other)
    mouse(browser, "mousePressed", x, y)
    mouse(browser, "mouseMoved", x + 60, y + 5)
    mouse(browser, "mouseMoved", x + 150, y + 500)
    mouse(browser, "mouseReleased", x + 150, y + 500, held=False)
    moved = place(index)
    assert moved[0] == pytest.approx(x + 150, abs=1) and y < moved[1] < y + 40  # it stays in the row of its layer
    assert place(other) == pytest.approx(still, abs=0.5)
    assert "open=" not in browser.current_url  # a drag is no click
    box = browser.execute_script(
        "const b = document.querySelector('.stage').getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
    )
    ground = (box[0] + box[2] - 12, box[1] + box[3] - 12)
    mouse(browser, "mousePressed", *ground)
    mouse(browser, "mouseMoved", ground[0] - 40, ground[1] - 25)
    mouse(browser, "mouseReleased", ground[0] - 40, ground[1] - 25, held=False)
    assert place(other) == pytest.approx([still[0] - 40, still[1] - 25], abs=1)
    left, right = min(place(i) for i in (index, other)), max(place(i) for i in (index, other))
    zoom_in, zoom_out, fit = browser.find_elements("css selector", ".zooms button")
    zoom_in.click()
    wider = max(place(i) for i in (index, other))[0] - min(place(i) for i in (index, other))[0]
    assert wider == pytest.approx(1.3 * (right[0] - left[0]), rel=1e-3)
    fit.click()
    for i in (index, other):
        assert box[0] <= place(i)[0] <= box[0] + box[2] and box[1] <= place(i)[1] <= box[1] + box[3]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """2,000 cards, 20,000 features and close to 60,000 relations, as a page and as a folder."""
    folder = tmp_path_factory.mktemp("large")
    report = make_report(layers=12, width=1667, games=False, edges=74_000, cards=2000)
    assert len(report["features"]) > 20_000 and len(report["edges"]) > 58_000
    write_page(report, folder / "large.html")
    write_site(report, folder / "site")
    return folder


@browser_test
def test_500_nodes_are_dragged_above_30_frames_a_second(open_page, large):
    browser = open_page("#/community/5", path=large / "large.html")
    wait_for(browser, "return window.report.graph?.counts().nodes === 500")
    assert shown(browser)["edges"] > 500
    index = browser.execute_script("return report.graph.current()")
    x, y = browser.execute_script("return report.graph.place(arguments[0])", index)

    def frames(x, y, seconds=1.2):
        """Frames a second while the mouse drags from (x, y), to and fro."""
        browser.execute_script(
            "window.times = []; window.ticking = true;"
            "requestAnimationFrame(function tick(time) { times.push(time); if (ticking) requestAnimationFrame(tick); })"
        )
        mouse(browser, "mousePressed", x, y)
        end, k = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            k += 1
            mouse(browser, "mouseMoved", x + 10 + 2 * (k % 90), y + k % 9)
        times = browser.execute_script("ticking = false; return times")
        mouse(browser, "mouseReleased", x, y, held=False)
        return 1000 * (len(times) - 1) / (times[-1] - times[0])

    # The best of some: what else the machine does is not what is measured
    assert any(frames(x, y) > 30 for _ in range(8))
    box = browser.execute_script(
        "const b = document.querySelector('.stage').getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
    )
    # The whole ground, where everything is drawn anew
    ground = (box[0] + box[2] - 250, box[1] + box[3] - 12)
    assert any(frames(*ground) > 20 for _ in range(8))
    assert browser.get_log("browser") == []


@browser_test
def test_a_large_report_opens_quickly(open_page, large):
    assert (large / "large.html").stat().st_size < 8e6
    start = time.monotonic()
    browser = open_page("#/5/82", path=large / "large.html")
    wait_for(
        browser,
        "return document.querySelector('.card-loaded section, .card-loaded p:not(:only-child)') || window.report.graph",
    )
    assert time.monotonic() - start < 5
    begin = browser.execute_script("return performance.now()")
    browser.find_element("id", "search").send_keys("jerusalem")
    wait_for(browser, "return document.querySelector('#found .all')?.textContent.startsWith('All ')")
    assert browser.execute_script("return performance.now()") - begin < 3000


@browser_test
def test_a_folder_loads_its_shards_as_they_are_opened(open_page, large):
    browser = open_page(path=large / "site" / "index.html")
    title_is(browser, "GPT-2 small, residual stream")
    first = [url.split("/site/")[1] for url in requested(browser)]
    assert "data/edges.js" in first and len(first) < 5
    go(browser, "#/0/700")
    wait_for(browser, "return document.querySelector('.card .texts')")
    (then,) = requested(browser)
    assert re.search(r"/data/shard-\d+\.js$", then)
    assert all(entry["level"] != "SEVERE" for entry in browser.get_log("browser"))
    assert browser.execute_script("return document.querySelectorAll('head script').length") == 0


@browser_test
def test_a_missing_shard_is_told(open_page, tmp_path):
    write_site(make_report(layers=2, width=6), tmp_path / "site")
    (tmp_path / "site" / "data" / "shard-0.js").unlink()
    browser = open_page("#/1/8", path=tmp_path / "site" / "index.html")
    wait_for(browser, "return document.querySelector('.card .warn')")
    assert (
        "data/shard-0.js is missing: keep index.html and its data folder together"
        in browser.find_element("css selector", ".card").text
    )
    (tmp_path / "site" / "data" / "edges.js").unlink()
    browser = open_page(path=tmp_path / "site" / "index.html")
    assert "data/edges.js is missing" in browser.find_element("id", "main").text


@browser_test
def test_pointing_tells_what_a_node_and_a_relation_are(open_page, data):
    browser = open_page("#/1/8")
    up = next(
        edge for edge in data["edges"] if data["features"][edge[1]]["l"] == 1 and data["features"][edge[1]]["f"] == 8
    )
    a, b = (browser.execute_script("return report.graph.place(arguments[0])", i) for i in up[:2])
    mouse(
        browser, "mouseMoved", (a[0] + b[0]) / 2, (a[1] + b[1]) / 2, held=False
    )  # a curve's middle is its ends' mean
    tip = browser.find_element("css selector", ".tip")
    wait_for(browser, "return !document.querySelector('.tip').hidden")
    first = data["features"][up[0]]
    assert tip.text.startswith(f"{first['l']}/{first['f']} to 1/8\nPearson\n{up[2][0]:.3f}\nCosine\n{up[2][1]:.3f}")
    mouse(browser, "mouseMoved", *b, held=False)
    wait_for(browser, "return document.querySelector('.tip').textContent.includes('fires on')")
    assert "1/8" in tip.text
    box = browser.execute_script(
        "const b = document.querySelector('.stage').getBoundingClientRect(); return [b.left, b.top]"
    )
    mouse(browser, "mouseMoved", box[0] - 5, box[1] - 5, held=False)
    wait_for(browser, "return document.querySelector('.tip').hidden")


@browser_test
def test_a_graph_alone_is_a_report_too(open_page, tmp_path):
    features = [{"l": layer, "f": 9, "explanation": f"the word Zion {layer}", "label": "none"} for layer in (2, 5, 6)]
    data = {
        "version": 1, "title": "A community", "about": {}, "measures": ["similarity"], "layers": [2, 5, 6], "quality": {},
        "features": features, "edges": [[0, 1, [0.9]], [1, 2, [-0.4]]], "flow": [], "prompts": [],
        "communities": [{"id": 1, "size": 3, "layers": {"2": 1, "5": 1, "6": 1}, "features": [0, 1, 2]}],
    }  # fmt: skip
    write_page(data, tmp_path / "page.html")
    browser = open_page("#/community/1", path=tmp_path / "page.html")
    assert shown(browser) == {"nodes": 3, "edges": 2}
    assert "negative" in browser.find_element("css selector", ".legend").text
    assert "telling texts" not in browser.find_element("id", "main").text
    for link in ("", "#/5/9", "#/flow", "#/features", "#/prompts"):
        go(browser, link)
        time.sleep(0.1)
    assert browser.get_log("browser") == []


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Two graphs in one report, each by a measure of its own; the second is complete between its layers."""
    names = ["a", "b", "c", *(f"d{n}" for n in range(16))]
    layers = [0, 1, 2, *[0] * 8, *[1] * 8]
    features = [{"l": layers[n], "f": n, "explanation": name, "label": "none"} for n, name in enumerate(names)]
    edges = [[0, 1, [None, 0.7]], [1, 2, [None, 0.6]]]
    edges += [[up, down, [0.99, None]] for up in range(3, 11) for down in range(11, 19)]
    data = {
        "version": 1, "title": "Two graphs", "about": {}, "measures": ["pearson", "jaccard"], "layers": [0, 1, 2],
        "quality": {}, "features": features, "edges": edges, "flow": [], "prompts": [],
        "communities": [
            {"id": 0, "name": "jaccard_3", "measure": "jaccard", "size": 3, "layers": {}, "features": [0, 1, 2]},
            {"id": 1, "name": "<b>pearson", "measure": "pearson", "size": 16, "layers": {}, "features": [*range(3, 19)]},
        ],
    }  # fmt: skip
    path = tmp_path_factory.mktemp("graphs") / "page.html"
    write_page(data, path)
    return path


def measure_shown(browser):
    return browser.execute_script("return document.getElementById('measure').selectedOptions[0].text")


@browser_test
def test_a_graph_opens_by_its_own_measure(open_page, graphs):
    browser = open_page("#/community/0", path=graphs)
    assert measure_shown(browser) == "Jaccard" and shown(browser) == {"nodes": 3, "edges": 2}
    assert browser.current_url.endswith("#/community/0")
    choose(browser, "measure", 0)
    assert browser.current_url.endswith("#/community/0?measure=pearson") and shown(browser)["edges"] == 0
    told = browser.find_element("css selector", ".told").text
    assert told == "3 features, 0 relations. Pearson is not known of these features."
    # What was chosen does not follow to a graph of another measure; the way back finds it again
    go(browser, "#/community/1")
    wait_for(browser, "return report.graph.counts().edges === 64")
    assert measure_shown(browser) == "Pearson"
    go(browser, "#/community/0")
    wait_for(browser, "return report.graph.counts().edges === 2")
    browser.back()
    wait_for(browser, "return report.graph.counts().edges === 64")
    browser.back()
    wait_for(browser, "return report.graph.counts().nodes === 3 && report.graph.counts().edges === 0")
    assert measure_shown(browser) == "Pearson" and browser.get_log("browser") == []


@browser_test
def test_a_feature_opens_by_a_measure_that_knows_its_relations(open_page, graphs):
    browser = open_page("#/0/3", path=graphs)
    assert measure_shown(browser) == "Pearson" and shown(browser)["edges"] > 0
    go(browser, "#/1/1")
    wait_for(browser, "return report.graph.counts().nodes === 3")
    assert measure_shown(browser) == "Jaccard"
    heads = browser.execute_script(
        "return [...document.querySelectorAll('.neighbours th[scope=col]')].map((h) => h.innerText)"
    )
    assert [head.split()[0] for head in heads] == ["Feature", "Jaccard"] * 2
    # A graph has no activations to show
    assert browser.find_elements("css selector", ".numbers") == []
    assert browser.get_log("browser") == []


@browser_test
def test_a_community_shows_the_name_it_was_given(open_page, graphs):
    browser = open_page("#/communities", path=graphs)
    given = browser.execute_script("return [...document.querySelectorAll('.given')].map((p) => p.textContent)")
    assert sorted(given) == ["<b>pearson", "jaccard_3"]
    go(browser, "#/community/1")
    wait_for(browser, "return document.querySelector('.card .given')?.textContent === '<b>pearson'")


# The share of points in the middle between two rows that are painted
PAINTED = """
const [[x0, y], [x1]] = [report.graph.place(arguments[0]), report.graph.place(arguments[1])], below = report.graph.place(arguments[2])[1];
const canvas = document.querySelector('.stage canvas'), box = canvas.getBoundingClientRect(), width = Math.round(x1 - x0);
const row = canvas.getContext('2d').getImageData(x0 - box.left, y + 0.3 * (below - y) - box.top, width, 1).data;
return Array.from({ length: width }, (_, i) => row[4 * i + 3] > 60).filter(Boolean).length / width;
"""


@browser_test
def test_edges_of_a_complete_graph_leave_room_between_them(open_page, graphs):
    browser = open_page("#/community/1", path=graphs)
    time.sleep(0.2)
    ends = sorted(range(3, 11), key=lambda i: browser.execute_script("return report.graph.place(arguments[0])[0]", i))
    assert 0.1 < browser.execute_script(PAINTED, ends[0], ends[-1], 11) < 0.9


@browser_test
def test_values_of_a_community_are_not_called_activations(open_page, data):
    browser = open_page("#/community/5")
    wait_for(browser, "return document.querySelector('.card .text-foot')")
    top = max(next(c for c in data["communities"] if c["id"] == 5)["texts"][0]["values"])
    foot = browser.find_element("css selector", ".card .text-foot").text
    assert "of the largest activation, on average" in foot and f"{top:.3g}"[:4] in foot


@browser_test
def test_nodes_glide_to_the_places_that_they_have_without_motion(open_page):
    places = {}
    for motion in ("reduce", "no-preference"):
        browser = open_page("#/5/82", page="text.html", motion=motion)
        wait_for(browser, "return window.report.graph?.counts().nodes > 5")
        choose(browser, "measure", 2)
        time.sleep(0.6)
        script = "return [...Array(720).keys()].map((i) => report.graph.place(i)).filter(Boolean)"
        places[motion] = browser.execute_script(script)
        assert browser.get_log("browser") == []
    np.testing.assert_allclose(places["reduce"], places["no-preference"], atol=0.5)
