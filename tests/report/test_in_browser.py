"""Reports in a real browser: what can be clicked does what it says, in any light, at any width, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from .pages import Written

CSS = By.CSS_SELECTOR


@pytest.fixture
def shown(browser: Chrome, of_run: Written) -> Chrome:
    browser.get(of_run.page.as_uri())
    return browser


@pytest.fixture
def bench(browser: Chrome, of_benchmark: Written) -> Chrome:
    browser.get(of_benchmark.page.as_uri())
    return browser


def column(browser: Chrome, table: str, number: int) -> list[str]:
    return [cell.text for cell in browser.find_elements(CSS, f"{table} tbody tr > :nth-child({number})")]


def colour(point: WebElement) -> str:
    return point.value_of_css_property("fill")


def centred(browser: Chrome, point: WebElement) -> WebElement:
    """Return the element, scrolled to where nothing else is over it."""
    browser.execute_async_script(
        """const [point, done] = arguments;
        point.scrollIntoView({block: "center"});
        requestAnimationFrame(() => requestAnimationFrame(done));  // what listens to scrolling is told by then""",
        point,
    )
    return point


def pointed_at(browser: Chrome, point: WebElement) -> WebElement:
    centred(browser, point)
    ActionChains(browser).move_to_element(point).perform()
    return browser.find_element(By.ID, "tip")


@pytest.mark.parametrize("which", ["of_run", "of_benchmark", "of_nasty"])
def test_nothing_is_fetched_and_nothing_goes_wrong(browser: Chrome, which: str, request: pytest.FixtureRequest) -> None:
    browser.get(request.getfixturevalue(which).page.as_uri())
    assert browser.get_log("browser") == []
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    )
    assert fetched == []
    assert browser.execute_script("return document.querySelectorAll('script').length") == 1
    unnamed = "return [...document.images].filter(i => !i.hasAttribute('alt') || (!i.hidden && !i.naturalWidth)).length"
    assert browser.execute_script(unnamed) == 0


def test_a_page_runs_no_script_but_its_own(browser: Chrome, of_run: Written, tmp_path: Path) -> None:
    for place, added in enumerate(
        ("<script>document.title = 'taken'</script>", "<img src=x onerror=document.title='taken'>")
    ):
        page = tmp_path / f"{place}.html"
        page.write_text(of_run.html.replace("<main", f"{added}<main"), encoding="utf-8")
        browser.get(page.as_uri())
        assert browser.title == "adip: paint unseen"
    browser.get_log("browser")  # its complaints


def test_markup_in_names_makes_no_elements(browser: Chrome, of_nasty: Written) -> None:
    browser.get(of_nasty.page.as_uri())
    assert browser.find_elements(CSS, "main u, main em, body > b") == []
    assert '<script>alert("x")' in browser.find_element(By.ID, "classes").text


def test_a_table_is_sorted_by_the_column_that_is_clicked(shown: Chrome) -> None:
    button = shown.find_element(CSS, "#classes thead th:nth-child(3) button")
    button.click()
    values = [float(text) for text in column(shown, "#classes", 3)]
    assert values == sorted(values) and len(values) == 3
    button.send_keys(Keys.ENTER)  # the keyboard does, too
    assert [float(text) for text in column(shown, "#classes", 3)] == values[::-1]
    head = shown.find_element(CSS, "#classes thead th:nth-child(3)")
    assert head.get_attribute("aria-sort") == "descending"
    shown.find_element(CSS, "#classes thead th:nth-child(1) button").click()
    assert column(shown, "#classes", 1) == ["ball", "box", "cone"]


def test_the_map_is_coloured_by_class_or_by_domain(shown: Chrome) -> None:
    points = shown.find_elements(CSS, ".map figure:first-child circle:not(.u)")
    ball = [point for point in points if point.get_attribute("data-class") == "0"]
    domains = [point.get_attribute("data-tip").split(", ")[1].split("\n")[0] for point in ball]
    assert set(domains) == {"chalk", "ink"} and len({colour(point) for point in ball}) == 1
    shown.find_element(CSS, "label[for=by-domain]").click()
    by_domain = {(name, colour(point)) for name, point in zip(domains, ball, strict=True)}
    assert len(by_domain) == 2 and len({one for _, one in by_domain}) == 2
    legend = shown.find_element(CSS, ".map ul.by-domain")
    assert legend.is_displayed() and "paint" in legend.text
    assert not shown.find_element(CSS, ".map .by-class").is_displayed()


def test_a_class_can_be_seen_alone(shown: Chrome) -> None:
    Select(shown.find_element(CSS, "select[data-picks]")).select_by_visible_text("box")
    clear = shown.find_elements(CSS, ".map circle:not(.dim)")
    assert clear and {point.get_attribute("data-class") for point in clear} == {"1"}
    Select(shown.find_element(CSS, "select[data-picks]")).select_by_index(0)
    assert shown.find_elements(CSS, ".map .dim") == []


def test_pointing_at_an_image_on_the_map_shows_it(shown: Chrome) -> None:
    (*_, point) = shown.find_elements(CSS, ".map circle")
    tip = pointed_at(shown, point)
    assert tip.is_displayed() and tip.text.split(",")[0] in ("ball", "box", "cone")
    image = tip.find_element(By.TAG_NAME, "span")
    assert "data:image/webp" in image.value_of_css_property("background-image")
    assert image.size == {"width": 72, "height": 72}
    ActionChains(shown).send_keys(Keys.ESCAPE).perform()
    assert not tip.is_displayed()


def test_pointing_at_a_chart_tells_the_figure(shown: Chrome) -> None:
    bar = shown.find_element(CSS, "#confidence rect[data-tip]")
    assert "predictions around" in pointed_at(shown, bar).text


def test_runs_are_filtered_by_words_and_by_a_methods_link(bench: Chrome) -> None:
    rows = lambda: [row for row in bench.find_elements(CSS, "#list tbody tr") if row.is_displayed()]  # noqa: E731
    assert len(rows()) == 10
    field = bench.find_element(By.ID, "words")
    field.send_keys("erm resnet")
    assert len(rows()) == 2 and bench.find_element(By.ID, "shown").text == "2 of 10 runs"
    (link, *_) = bench.find_elements(CSS, "#results a[data-filter='test_efficientnet adip']")
    centred(bench, link).click()
    assert field.get_attribute("value") == "test_efficientnet adip"
    assert {row.find_element(CSS, ".folder").text.rsplit("-", 2)[0] for row in rows()} == {
        "shapes-paint-test_efficientnet-adip"
    }


@pytest.fixture
def phone(browser: Chrome) -> Iterator[Chrome]:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("which", ["of_run", "of_benchmark"])
def test_it_fits_a_phone_and_the_dark(phone: Chrome, which: str, request: pytest.FixtureRequest) -> None:
    page: Path = request.getfixturevalue(which).page
    grounds = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        phone.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        phone.get(page.as_uri())
        assert phone.execute_script("return document.documentElement.scrollWidth") == 360
        body = phone.find_element(By.TAG_NAME, "body")
        grounds[scheme] = body.value_of_css_property("background-color"), body.value_of_css_property("color")
    assert grounds["light"] != grounds["dark"]
