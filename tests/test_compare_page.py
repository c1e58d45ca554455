"""What a comparison writes: a page that needs nothing else, inert tables, figures without a browser."""

import csv
import io
import json
import re
import resource
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.planted import config, plant
from vae_lab.compare import command, report
from vae_lab.errors import ConfigError, StorageError

EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Elements and links of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        if tag == "a" and not str(values.get("href")).startswith("#"):
            self.links.append(str(values["href"]))
        self.sources += [str(values[key]) for key in ("src", "srcset", "data") if key in values]


def write(folder: Path, out: Path, **options: object) -> report.Report:
    found = report.build([folder], **options)  # type: ignore[arg-type]
    command.write(found, out)
    return found


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two models, two latent sizes, three seeds, with pictures."""
    for seed in range(3):
        for dim in (2, 5):
            for variant, shift in (("vae", 0.0), ("better", -1.0)):
                nll = 30 - dim + shift + 0.1 * seed * dim + 0.03 * seed * shift
                plain = config(seed=seed, latent_dim=dim, model__variant=variant)
                plant(tmp_path / "sweep" / f"{variant} {dim} #{seed}", plain, nll, pictures=seed == 0)
    return tmp_path / "sweep"


def test_all_outputs_and_a_page_that_needs_no_network(sweep: Path) -> None:
    write(sweep, sweep / "report.html")
    page = Page(sweep / "report.html")
    assert all(source.startswith("data:image/webp;base64,") for source in page.sources)
    assert len(page.sources) == 16  # four kinds, four groups
    assert "link" not in page.tags
    assert "iframe" not in page.tags
    text = (sweep / "report.html").read_text()
    css = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert not re.search(r"url\(|@import", " ".join(css))
    assert text.count('id="plotly"') == 1
    assert len(text) < 6_000_000
    assert page.links
    for link in page.links:
        assert (sweep / unquote(link)).exists(), link
    names = {path.name for path in (sweep / "figures").iterdir()}
    expected = ("outcome", "gains", "rate_distortion", "against_latent_dim", "cost", "latents", "curves")
    assert names == {f"{name}.{kind}" for name in expected for kind in ("png", "svg")}
    for path in (sweep / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert len(set(image.convert("L").resize((60, 60)).tobytes())) > 5  # something is drawn
    for path in (sweep / "figures").glob("*.svg"):
        assert path.read_text().rstrip().endswith("</svg>")


def test_a_second_comparison_replaces_the_first(sweep: Path) -> None:
    write(sweep, sweep / "report.html")
    before = {path.name for path in sweep.iterdir()}
    found = write(sweep, sweep / "report.html")
    assert len(found.records) == 12
    assert {path.name for path in sweep.iterdir()} == before


def test_only_copies_are_called_so(sweep: Path) -> None:
    write(sweep, sweep / "report.html")
    assert "(copy)" not in (sweep / "report.html").read_text()
    plant(sweep / "again", config(seed=0, model__variant="vae"), 28)
    write(sweep, sweep / "report.html")
    assert (sweep / "report.html").read_text().count("(copy)") == 1


def test_links_can_be_left_out(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "page.html"
    command.write(report.build([sweep]), out, links=False)
    assert Page(out).links == []


def test_what_configs_say_is_escaped_everywhere(tmp_path: Path) -> None:
    for seed in range(2):
        for variant in (EVIL, "=HYPERLINK(1)", "**bold** [x](http://evil)"):
            plain = config(seed=seed, model__variant=variant, name=f"{EVIL}{seed}")
            plant(tmp_path / "runs" / f"{len(variant)}_{seed}", plain, 20 + seed, note=EVIL, environment={"torch": f"{EVIL}{seed}"})
    failed = plant(tmp_path / "runs" / "failed", config(seed=3), status="failed", error=EVIL)
    assert failed.exists()
    write(tmp_path / "runs", tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    assert EVIL not in text
    assert "&lt;script&gt;alert" in text
    assert Page(tmp_path / "out.html").tags.count("script") == 3  # plotly, the figures, the page's own
    figures = json.loads(re.findall(r'<script id="figures"[^>]*>(.*?)</script>', text, re.S)[0])
    assert "<script" not in json.dumps(figures)
    markdown = (tmp_path / "summary.md").read_text()
    assert "<script" not in markdown
    assert "[x](http" not in markdown
    for name in ("runs.csv", "summary.csv"):
        rows = list(csv.DictReader(io.StringIO((tmp_path / name).read_text())))
        cells = [cell for row in rows for cell in row.values()]
        assert any(cell.startswith("'=HYPERLINK") for cell in cells)
        assert not any(cell[:1] in "=+@\t\r" for cell in cells if cell)
        for cell in cells:
            if cell.startswith("-"):
                float(cell)  # only numbers begin with a minus


def test_numbers_in_tables_stay_numbers(sweep: Path) -> None:
    write(sweep, sweep / "report.html")
    rows = list(csv.DictReader(io.StringIO((sweep / "runs.csv").read_text())))
    assert len(rows) == 12
    assert all(float(row["test/elbo"]) < 0 for row in rows)
    assert all((sweep / row["folder"]).is_dir() for row in rows)
    summary = list(csv.DictReader(io.StringIO((sweep / "summary.csv").read_text())))
    best = summary[0]
    assert (best["group"], best["standing"]) == ("better · z=5", "best")
    assert float(best["mean"]) == pytest.approx(-(30 - 5 - 1 + 0.5 - 0.03 + 5))


def test_plots_with_nothing_to_show_are_not_there(tmp_path: Path) -> None:
    ae = {"name": "reconstruction"}
    for seed in range(2):
        plain = config(seed=seed, model__variant="autoencoder", objective=ae)
        plant(tmp_path / f"{seed}", plain, 20 + seed, kl=None)
    names = {chart.name for chart in report.build([tmp_path]).parts[0].charts}
    assert names == {"outcome", "latents", "curves"}  # one group: no gains, no axis, no cost, no rate


def test_several_sections_have_their_own_figures(tmp_path: Path) -> None:
    for seed in range(2):
        for loss in ("bce", "mse"):
            plant(tmp_path / f"{loss}{seed}", config(seed=seed, loss__name=loss), 20 + seed)
    found = write(tmp_path, tmp_path / "report.html")
    assert len(found.parts) == 2
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"section1_outcome.png", "section2_outcome.png"} <= names
    text = (tmp_path / "report.html").read_text()
    assert "ranking across sections would mean nothing" in text


def test_damaged_pictures_are_listed(sweep: Path) -> None:
    (sweep / "vae 2 #0" / "figures" / "samples.png").write_bytes(b"\x89PNG no")
    write(sweep, sweep / "report.html")
    text = (sweep / "report.html").read_text()
    assert "Pictures that cannot be read" in text
    assert len(Page(sweep / "report.html").sources) == 15


def test_where_the_page_goes(sweep: Path, tmp_path: Path) -> None:
    run = sweep / "vae 2 #0"
    assert command.output_path(None, [sweep]) == sweep / "report.html"
    assert command.output_path(None, [run]) == run / "compare" / "report.html"  # a run's own figures stay as they are
    for wrong in (tmp_path / "page.txt", tmp_path, run / "page.html"):
        with pytest.raises(ConfigError):
            command.output_path(wrong, [sweep])


def test_a_folder_that_cannot_be_written_is_one_message(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"):
        command.write(report.build([sweep]), tmp_path / "file" / "page.html")


def test_two_hundred_runs_in_ten_seconds(tmp_path: Path) -> None:
    """Processor time, since the machine may be busy; 20 groups of 10 seeds, 100 epochs each."""
    for number in range(200):
        seed, group = number % 10, number // 10
        plain = config(
            seed=seed, latent_dim=(2, 5, 10, 20)[group % 4], objective__beta=float(2 ** (group // 4)), trainer__epochs=100
        )
        plant(tmp_path / f"{number}", plain, 20 + group + 0.1 * seed * (1 + group % 3), pictures=seed == 0 and group == 0)
    for number in range(0, 200, 10):
        if number:
            shutil.copytree(tmp_path / "0" / "figures", tmp_path / str(number) / "figures")
    program = "import sys; sys.argv = ['vae-lab', 'compare', sys.argv[1]]; from vae_lab.cli import main; main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 10, f"{used:.1f} s"
