"""The page has the run's figures, games as text whatever they hold, and nothing that it would have to fetch."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from spiral_trl.hub.figures import COLORS, pictures, to_svg
from spiral_trl.hub.replay import choose_episodes, safe
from spiral_trl.hub.report import write_report
from spiral_trl.hub.summary import summarise
from spiral_trl.hub.templating import template_text
from spiral_trl.records import Ending


HOSTILE = (
    "<script>alert(1)</script>", "</script><script>alert(2)</script>", '"><img src=x onerror=alert(3)>',
    "]]><svg onload=alert(4)>", "{{ 7 * 7 }}", "<!--", "&lt;b&gt;", "$\\frac{$ _{x}", "x\u2028y\u202ez\0",
)  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page; text by the `<pre>` it stands in."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.pres: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style", "pre"):
            self._inside = tag
        if tag == "pre":
            self.pres.append("")

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data):
        if self._inside == "pre":
            self.pres[-1] += data
        if self._inside not in ("script", "style"):
            self.text += data + " "


def render(metrics, episodes, tmp_path):
    write_report(metrics, episodes, tmp_path / "out" / "report.html")
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_figures_of_the_run_are_shown(page):
    text = " ".join(Page(page.read_text(encoding="utf-8")).text.split())
    for part in (
        "embedded Qwen3, 20k parameters", "kuhn_poker(observation=compact)", "0.893", "0.0123", "0.317", "chips, exact", "7,168,000", "2 min 10 s",
        "not a pretrained language model", "accelerate launch recipes/kuhn.py --config recipes/kuhn_tiny.yaml",
        "Seed 0", "x86_64, 2 cores, 1 process", "trl 1.16.0", "an equilibrium has 0", "Q, after check bet",
        "0.33–0.67", "61.0% [58.0, 64.0]", "−0.06 [−0.14, 0.02]", "learning_rate: 0.004", "alpha = 0.210",
    ):  # fmt: skip
        assert part in text, part


def test_equal_input_makes_an_equal_file(metrics, episodes, tmp_path):
    first = render(metrics, episodes, tmp_path)
    assert first == render(metrics, episodes, tmp_path)
    assert not re.search(r"20\d\d-\d\d-\d\dT", first)


def test_nothing_is_fetched(page):
    parsed = Page(page.read_text(encoding="utf-8"))
    for tag, attributes in parsed.tags:
        for name in ("src", "srcset", "poster", "data", "action"):
            assert name not in attributes, (tag, attributes)
        if tag == "link":
            assert attributes["href"] == "data:,"
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert "url(http" not in page.read_text() and "@import" not in page.read_text()
    assert [tag for tag, _ in parsed.tags if tag == "script"] == ["script"]


def test_ids_are_unique_and_references_resolve(page):
    parsed = Page(page.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)|href="#([a-z]+)"', text)
    assert targets
    assert {a or b or c for a, b, c in targets} <= set(ids)


def test_pictures_take_their_colours_from_the_page(metrics):
    css = template_text("report.css.jinja")
    sections = pictures(summarise(metrics))
    assert {name: len(drawn) for name, drawn in sections.items()} == {
        "curves": 2, "strategy": 2, "results": 2, "seats": 1
    }  # fmt: skip
    for picture in (picture for drawn in sections.values() for picture in drawn):
        svg = to_svg(picture)
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set(), picture.name
        assert "<text" in svg and 'role="img"' in svg and "aria-label=" in svg
        for name in re.findall(r"var\(--(\w+)\)", svg):
            assert css.count(f"--{name}:") == 2, name
    for name, color in COLORS.items():
        assert f"--{name}: {color};" in css


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_in_both_palettes():
    """WCAG 2.1: 4.5 for text, 3 for the marks of a picture."""
    light, dark = re.findall(r":root \{(.*?)\}", template_text("report.css.jinja"), flags=re.DOTALL)
    for palette in (light, dark):
        colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", palette))
        for least, names, grounds in (
            (4.5, ("ink", "muted", "link", "good", "bad"), ("page", "surface", "tint")),
            (3.0, ("blue", "vermillion", "green", "purple", "muted"), ("surface",)),
        ):
            for name in names:
                for ground in grounds:
                    low, high = sorted((luminance(colors[name]), luminance(colors[ground])))
                    assert (high + 0.05) / (low + 0.05) >= least, (name, ground)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(metrics, make_episode, tmp_path, text):
    episode = make_episode(1, "JQ", [(text, None, text)], (-2, 2), Ending.ILLEGAL)
    step = episode.steps[0]
    turn = replace(
        step.turn, role=text, infoset=text, legal_actions=(text,), messages=({"role": text, "content": text},)
    )
    episode = replace(episode, game=text, roles=(text, text), players=(text, text), steps=(replace(step, turn=turn),))
    metrics["model"].update(name=text, architecture=text)
    metrics["command"] = metrics["recipe"] = metrics["game"] = text
    metrics["strategy"][0].update(card=text, history=text, actions=[text, text])
    metrics["results"][0].update(opponent=text, role=text)
    metrics["curves"]["self_play"][0]["return"] = {text: 0.0}
    html = render(metrics, [episode], tmp_path)
    parsed = Page(html)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == 1 and tags.count("title") == 1
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    # The reply, to the letter; what cannot be seen as an escape.
    assert safe(text) in parsed.pres
    for char in "\u2028\u202e\0":
        assert char not in html


def test_invisible_characters_become_escapes():
    assert safe("a\u2028b\u202ec\x07d\ud800e\tf\n") == "a\\u2028b\\u202ec\\u0007d\\ud800e\tf\n"


def test_a_dozen_games_with_every_ending(episodes, tmp_path, metrics):
    chosen = choose_episodes(episodes)
    assert len(chosen) == 12
    assert {episode.ending for episode in chosen} == set(Ending)
    assert [episode.seed for episode in chosen] == sorted(episode.seed for episode in chosen)
    assert choose_episodes(episodes[:2]) == episodes[:2]
    # A rare ending at the very end still gets its place.
    terminal = [episodes[0]] * 30
    assert choose_episodes([*terminal, episodes[3]])[-1] is episodes[3]
    text = " ".join(Page(render(metrics, episodes, tmp_path)).text.split())
    assert "12 of the 19 games that were kept" in text


def test_every_game_is_readable_without_script(page):
    text = " ".join(Page(page.read_text(encoding="utf-8")).text.split())
    for part in (
        "player 1 card K history bet", "K K K [", "no action in square brackets; legal are fold, call",
        "Legal fold, call", "ended by an illegal reply", "cut at the turn limit", "cut at the length limit", "+2",
        "−2",
        "information set 1|K|bet",
    ):  # fmt: skip
        assert part in text, part
    parsed = Page(page.read_text(encoding="utf-8"))
    assert not any("hidden" in attributes for _, attributes in parsed.tags)


@pytest.mark.parametrize("missing", ["plain", "strategy", "curves", "most", "none_values", "sampled"])
def test_what_was_not_measured_is_left_out_or_named(metrics, episodes, tmp_path, missing):
    if missing == "plain":
        metrics["exploitability"]["plain"] = metrics["illegal_move_rate"]["plain"] = None
        metrics["curves"]["plain"] = []
        for row in metrics["strategy"]:
            row["plain"] = None
    elif missing in ("strategy", "curves"):
        metrics[missing] = None
    elif missing == "most":
        metrics = {"schema": 1, "game": "pig", "model": {"name": "m"}}
        episodes = []
    elif missing == "none_values":
        metrics = {key: None if key not in ("schema", "game", "model") else value for key, value in metrics.items()}
    elif missing == "sampled":
        metrics["exploitability"].update(method="sampled", samples=128, floor=0.038)
    html = render(metrics, episodes, tmp_path)
    text = Page(html).text
    assert "None" not in text and "nan" not in text
    if missing == "plain":
        assert "there was no plain run" in text and "Plain" not in text
    if missing == "strategy":
        assert "Strategy" not in text
    if missing == "most":
        assert "No games were kept" in text and "not measured" in text and "Over training" not in text
    if missing == "sampled":
        assert "sampled, K=128, floor 0.0380" in text and "floor of the estimate" in text


def test_large_strategy_tables_are_cut_and_say_so(metrics, episodes, tmp_path):
    metrics["strategy"] = metrics["strategy"] * 5
    text = Page(render(metrics, episodes, tmp_path)).text
    assert "Shown are the first 24 of 60 information sets" in text


def test_an_unfinished_run_says_so(metrics, episodes, tmp_path):
    assert "not finished" not in Page(render(metrics, episodes, tmp_path)).text
    metrics["finished"] = False
    assert "This run was not finished" in Page(render(metrics, episodes, tmp_path)).text


def test_metrics_survive_json(metrics, episodes, tmp_path):
    assert render(json.loads(json.dumps(metrics)), episodes, tmp_path) == render(metrics, episodes, tmp_path)


def test_script_writes_no_markup():
    script = template_text("report.js.jinja")
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval", "fetch(", "XMLHttp"):
        assert name not in script
