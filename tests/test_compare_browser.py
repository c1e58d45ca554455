"""The page in headless Chromium, opened from the disk as a reader would."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.planted import config, plant, write_ledger
from vae_lab.compare import command, report

pytestmark = pytest.mark.browser
DARK, LIGHT = "rgb(20, 23, 27)", "rgb(255, 255, 255)"


@dataclass
class Opened:
    """A page, and what went wrong in it."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no Chromium: apt-get install chromium"
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two losses (so two sections), two models, two latent sizes, three betas, five seeds; some runs gone; long names."""
    root = (
        tmp_path_factory.mktemp("page") / "a sweep with a long name, to see whether it is wrapped where there is little room for it"
    )
    for seed in range(5):
        for loss in ("bce", "mse"):
            for dim in (2, 20):
                for beta in (0.5, 1.0, 8.0):
                    plain = config(seed=seed, latent_dim=dim, objective__beta=beta, loss__name=loss)
                    if (seed, loss, dim) == (4, "mse", 20):
                        continue
                    folder = root / f"{loss}_{dim}_{beta}_{seed}"
                    nll = 30 - dim / 10 + beta * (1 + 0.01 * seed) + 0.2 * seed + (0 if loss == "bce" else 100)
                    status = {"status": "failed", "error": "x" * 300} if (seed, dim, beta) == (3, 2, 8.0) else {}
                    plant(folder, plain, nll, kl=5 / beta + 0.05 * seed, pictures=seed == 0, **status)
    write_ledger(root, [{"name": "late", "state": "not_run", "folder": "late", "cause": None, "fingerprint": "0"}])
    command.write(report.build([root]), root / "report.html")
    return root / "report.html"


@pytest.fixture
def opened(browser: Any, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    width, scheme = getattr(request, "param", (1400, "light"))
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    found = Opened(page)
    page.on("console", lambda message: found.complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("request", lambda sent: found.requests.append(sent.url))
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-drawn=yes]", timeout=60_000)
    yield found
    page.close()


EVERY = [(1400, "light"), (1400, "dark"), (500, "light"), (500, "dark")]


@pytest.mark.parametrize("opened", EVERY, indirect=True, ids=lambda value: f"{value[0]}-{value[1]}")
def test_every_plot_is_drawn_and_nothing_sticks_out(opened: Opened, request: pytest.FixtureRequest) -> None:
    page = opened.page
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    plots = page.locator(".plot")
    assert plots.count() >= 20
    for number in range(plots.count()):
        plot = plots.nth(number)
        drawn = plot.locator(".scatterlayer .trace path, .scatterlayer .point, .errorbars path").count()
        assert drawn > 0, plot.get_attribute("id")
        assert plot.evaluate("plot => plot.querySelector('.main-svg').getBoundingClientRect().width <= plot.clientWidth + 1")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    dark = "dark" in request.node.callspec.id
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (DARK if dark else LIGHT)
    ink = page.evaluate("getComputedStyle(document.querySelector('.plot .gtitle')).fill")
    assert ink == ("rgb(231, 233, 236)" if dark else "rgb(27, 30, 35)")


def test_the_switch_turns_all_of_it_dark_and_back(opened: Opened) -> None:
    page = opened.page
    for colour, ink in ((DARK, "rgb(231, 233, 236)"), (LIGHT, "rgb(27, 30, 35)")):
        page.click("#theme")
        page.wait_for_function(
            "([colour, ink]) => getComputedStyle(document.body).backgroundColor === colour && "
            "[...document.querySelectorAll('.plot .gtitle')].every(title => getComputedStyle(title).fill === ink)",
            arg=[colour, ink],
        )
    assert opened.complaints == []


def column(page: Any, name: str) -> list[str]:
    return page.evaluate(
        """name => { const table = document.getElementById('runs-table');
        const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === name);
        return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[at].dataset.sort); }""",
        name,
    )


def test_the_table_of_runs_sorts_and_filters(opened: Opened) -> None:
    page = opened.page
    head = page.locator("#runs-table thead button", has_text="test/nll")
    for descending in (False, True):
        head.click()
        texts = column(page, "test/nll")
        numbers = [float(text) for text in texts if text]
        assert numbers == sorted(numbers, reverse=descending)
        assert texts[-1] == ""  # a run without numbers stays last
    assert head.evaluate("button => button.parentElement.getAttribute('aria-sort')") == "descending"
    page.fill("#search", "failed MSE")
    assert set(column(page, "state")) == {"failed"}
    assert page.inner_text("#found") == "1 of 58 runs"
    page.fill("#search", "no such run")
    assert column(page, "state") == []
    page.fill("#search", "")
    assert len(column(page, "state")) == 58


def test_rows_lead_to_run_directories(opened: Opened, page_file: Path) -> None:
    link = opened.page.locator("#runs-table a").first
    assert link.count() == 1
    with opened.page.expect_navigation():
        link.click()
    assert Path(opened.page.evaluate("decodeURIComponent(location.pathname)")).parent == page_file.parent


def test_the_legend_hides_a_variant_in_every_plot_of_its_section(opened: Opened) -> None:
    page = opened.page

    def shown() -> list[int]:
        return page.evaluate(
            "[...document.querySelectorAll('.part')].map(part => [...part.querySelectorAll('.plot')].flatMap(plot => plot.data)"
            ".filter(trace => trace.meta.group === 0 && trace.visible !== false).length)"
        )

    first, second = shown()
    assert first > 5
    assert second > 5
    page.locator(".legend").first.locator("button").first.click()
    assert shown() == [0, second]
    page.locator(".legend").first.locator("button").first.click()
    assert shown() == [first, second]
    page.locator(".legend").first.locator("button").nth(1).dblclick()
    assert shown() == [0, second]
    assert opened.complaints == []


def test_on_paper_it_is_light_and_whole(opened: Opened) -> None:
    page = opened.page
    page.click("#theme")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == LIGHT
    assert page.evaluate("getComputedStyle(document.querySelector('header')).display") == "none"
    assert page.evaluate("getComputedStyle(document.querySelector('.tall')).overflowY") == "visible"
    assert len(page.pdf()) > 100_000


def test_no_plot_offers_an_upload_and_no_click_asks_the_network(opened: Opened) -> None:
    """plotly.js would send a chart to its company's cloud; the page's own buttons stay."""
    page = opened.page
    page.wait_for_selector(".plot .modebar-btn", state="attached")
    titles = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)")
    assert {"Zoom in", "Zoom out"} <= {*titles}
    assert [title for title in titles if "hare" in title or "loud" in title] == []
    page.evaluate("[...document.querySelectorAll('.modebar-btn, button')].forEach(button => button.click())")
    page.wait_for_timeout(500)
    assert [url for url in opened.requests if url.startswith(("http:", "https:", "ws:", "wss:"))] == []
