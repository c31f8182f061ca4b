"""The pages in a real browser: what headless Chromium shows, wide, narrow and in the dark."""

import html
import json
import re
import shutil
import subprocess

import pytest
from commands import ROOT
from test_compare import DEFAULTS, write_run

from ssl_jax.reports.compare.page import Compared, main_table, page
from ssl_jax.reports.compare.runs import find_runs, group, read_runs
from ssl_jax.reports.replication.page import page as replication_page
from ssl_jax.reports.replication.results import gather
from ssl_jax.workdir import metrics_csv

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, Debian's package, on the PATH"),
]
WIDTHS = (1280, 400)
# Pages run no script, by their own policy: another page measures them in frames. Contrast is that
# of WCAG 2, of the text's colour and the first background behind it that is not transparent.
PROBE = """<!doctype html><meta charset="utf-8">
<body style="margin:0">FRAMES<pre id="found"></pre><script>
const channel = x => { x /= 255; return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; };
const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const parts = colour => colour.match(/[0-9.]+/g).map(Number);
function behind(view, element) {
  for (; element; element = element.parentElement) {
    const c = parts(view.getComputedStyle(element).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }
  return null;  // nothing is painted: not even the page
}
function measure(frame) {
  const view = frame.contentWindow, page = view.document, root = page.documentElement;
  for (const fold of page.querySelectorAll("details")) fold.open = true;
  const texts = [...page.body.querySelectorAll("*")].filter(element =>
    [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  const contrasts = texts.map(element => {
    const ink = light(parts(view.getComputedStyle(element).color));
    const paper = light(behind(view, element));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    return [ratio, element.tagName + ": " + element.textContent.slice(0, 40)];
  });
  return {
    width: view.innerWidth, scroll: root.scrollWidth,
    paper: parts(view.getComputedStyle(page.body).backgroundColor),
    sideways: [...page.querySelectorAll("table")].map(table =>
      table.scrollWidth - table.parentElement.clientWidth),
    tables: [...page.querySelectorAll("table")].map(table =>
      [...table.rows].map(row => [...row.cells].map(cell => cell.innerText.trim()))),
    worst: contrasts.sort((a, b) => a[0] - b[0]).slice(0, 3), texts: texts.length,
    images: [...page.images].map(image => [image.naturalWidth, image.clientWidth]),
    requests: view.performance.getEntriesByType("resource").map(entry => entry.name),
    unfolded: UNFOLDED,
  };
}
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, link = page.querySelector("td a");
    const fold = page.getElementById(link.hash.slice(1)).closest("details");
    const before = fold.open;
    link.click();
    frame.followed = [before, fold.open];
    return measure(frame);
  });
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>""".replace("UNFOLDED", "frame.followed")


def look(folder, content, dark):
    """What Chromium shows of a page, in a frame of each width."""
    (folder / "page.html").write_text(content)
    frames = "".join(
        f'<iframe src="page.html" style="width:{width}px;height:2000px;border:0"></iframe>'
        for width in WIDTHS
    )
    (folder / "probe.html").write_text(PROBE.replace("FRAMES", frames))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",  # so that the probe may read its frames
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={int(not dark)}",
        "--window-size=1400,2200",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    address = (folder / "probe.html").as_uri()
    done = subprocess.run(
        [CHROMIUM, *options, address], capture_output=True, text=True, timeout=120
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], f"the probe did not run: {done.stdout[-500:]}{done.stderr[-500:]}"
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Four groups of two fields, one of them without an end, and names that are long."""
    folder = tmp_path_factory.mktemp("runs")
    for i, (tau, rate) in enumerate([(0.0, 0.03), (0.0, 0.3), (0.9, 0.03), (0.9, 0.3)]):
        for seed in range(3):
            changes = {"target.tau": tau, "optimizer.predictor.learning_rate": rate}
            measures = {"knn_accuracy": 0.4, "ridge_accuracy": 0.6, "rankme": 7.5, "loss": -1.0}
            origin = {"command": f"python launch.py --workdir {'x' * 300}", "commit": "f" * 40}
            run = write_run(
                folder / f"{i}-{seed}", seed, 0.5 + i / 50 + seed / 100, changes,
                provenance=origin, **measures,
            )  # fmt: skip
            rows = [
                {"step": float(s), "epoch": s / 10, "loss": -s / 100, "effective_rank": 3.0}
                for s in range(10, 60, 10)
            ]
            (run / "metrics.csv").write_text(metrics_csv.table(rows))
    runs, left_out = read_runs(find_runs(str(folder)), DEFAULTS)
    assert not left_out
    return Compared(group(runs), [f"/somewhere/{'y' * 200}: damaged"])


@pytest.fixture(scope="module")
def pages(compared):
    """Both pages, by their names."""
    return {"compare": page(compared), "replication": replication_page(gather([ROOT / "results"]))}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["compare", "replication"])
def test_what_a_browser_shows(tmp_path, pages, compared, name, dark):
    wide, narrow = look(tmp_path, pages[name], dark)
    for shown, width in zip((wide, narrow), WIDTHS, strict=True):
        assert shown["width"] == width and shown["scroll"] <= width
        assert shown["texts"] > 50 and shown["worst"][0][0] >= 4.5, shown["worst"]
        assert (max(shown["paper"][:3]) < 60) == dark  # the colours of that mode are in use
        assert all(
            natural > 0 and 0 < client <= max(width, 480) for natural, client in shown["images"]
        )
        assert not [entry for entry in shown["requests"] if not entry.startswith("data:")]
        assert shown["unfolded"] == [False, True]  # a link to runs shows them
    assert max(wide["sideways"]) <= 0  # tables fit a laptop's screen
    assert len(wide["images"]) >= 3 and wide["tables"] == narrow["tables"]
    if name == "compare":
        table = main_table(compared.groups)
        assert wide["tables"][0] == [table.header, *table.rows]
        assert [row[:3] for row in wide["tables"][0][1:]] == [
            ["0.03", "0", "0, 1, 2"],
            ["0.03", "0.9", "0, 1, 2"],
            ["0.3", "0", "0, 1, 2"],
            ["0.3", "0.9", "0, 1, 2"],
        ]


def test_the_probe_sees_faults(tmp_path):
    """Overflow, faint text, tables that scroll, requests: a page that has them all is seen to."""
    bad = (
        '<meta charset="utf-8"><body style="background:#fff"><p style="width:1500px">wide</p>'
        '<p style="color:#ccc">faint</p><img src="http://127.0.0.1:9/x.png">'
        '<div><table style="width:1600px"><tr><td><a href="#a">0</a></td></tr></table></div>'
        '<details><summary>run</summary></details><details id="a">closed</details>'
    )
    wide, narrow = look(tmp_path, bad, dark=True)
    assert wide["scroll"] > 1280 and narrow["scroll"] > 400
    assert wide["worst"][0][0] < 2 and wide["sideways"][0] > 0 and wide["images"][0][0] == 0
    assert wide["paper"] == [255, 255, 255] and wide["unfolded"] == [False, False]
    assert wide["requests"] == ["http://127.0.0.1:9/x.png"]
