"""The pages in a real browser: light and dark, at the width of a desk and of a phone, and on paper."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from batchinfer.accounting.comparison import Comparison
from batchinfer.pages import compare_page
from tests.support.mixed_runs import PastReplica, PastSession, end_run, write_run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [pytest.mark.soak, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")]


@pytest.fixture(scope="module", params=["run", "compare"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    file = folder / "page.html"
    if request.param == "run":
        replicas = [PastReplica(1_790_000_000 + 7 * i, load=40.0, work=[30.0, 20.0], idle=5.0 * i) for i in range(4)]
        checked = write_run(folder, [PastSession(2.5, replicas, tensor_parallel=2)])
        end_run(checked)
        file.write_bytes(checked.layout.storage.read(checked.layout.page))
    else:
        from tests.accounting.test_comparison import comparison, rows

        made: Comparison = comparison({"large": (9.0, rows(180, 200)), "small": (2.0, rows(179, 200))})
        file.write_bytes(compare_page(made))
    return file


def browse(page: Path, *options: str) -> None:
    """Open the page in a browser with a profile of its own."""
    assert BROWSER is not None
    base = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run([*base, profile, *options, page.as_uri()], capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_fills_its_window_in_both_schemes(page, width, dark):
    import matplotlib.image

    shot = page.parent / f"{width}-{dark}.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(page, f"--screenshot={shot}", f"--window-size={width},2400", *scheme)
    pixels = matplotlib.image.imread(shot)[..., :3].mean(axis=2)
    assert pixels.shape == (2400, width)
    paper = pixels[:, :4].mean()
    assert (paper < 0.2) == dark
    # Text and pictures stand out of the paper, also in the right half: nothing is squeezed to the left.
    written = abs(pixels - paper) > 0.3
    assert written.mean() > 0.005
    assert written[:, width // 2 :].mean() > 0.002


def test_a_page_prints_on_two_sheets(page):
    paper = page.parent / "page.pdf"
    browse(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    text = paper.read_bytes()
    assert 1 <= text.count(b"/Type /Page\n") + text.count(b"/Type /Page ") + text.count(b"/Type/Page/") <= 2
