"""The page in a real browser, where one is installed: no message on the console, nothing wider than the window."""

import re
import shutil
import subprocess

import pytest
from example_runs import run, study

from metadd_jax.job import report

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
# Presses what can be pressed and tells what it finds; appended to a copy of the page.
PROBE = """
<script>
addEventListener("load", () => {
  const say = (name, value) => console.log("probe " + name + "=" + value);
  say("width", document.documentElement.scrollWidth <= innerWidth);
  const heads = [...document.querySelectorAll("table.sortable th button")];
  const first = () => document.querySelector("table.sortable tbody tr").textContent;
  const column = () => [...document.querySelectorAll("table.sortable tbody td:nth-child(2)")].map(td => +td.dataset.v);
  heads[1].click();
  say("falls", column().every((v, i, all) => !i || all[i - 1] >= v));
  heads[1].click();
  say("rises", column().every((v, i, all) => !i || all[i - 1] <= v));
  say("told", heads[1].closest("th").getAttribute("aria-sort"));
  const seen = () => [...document.querySelectorAll("img.view")].filter(i => getComputedStyle(i).display !== "none");
  const images = seen().length;
  const radio = document.querySelectorAll("input[type=radio]")[3];
  if (radio) radio.click();
  say("switched", !radio || (seen().length === images && seen().every(i => i.classList.contains("v3"))));
  say("drawn", seen().every(i => i.naturalWidth > 0));
  const box = document.querySelector("#series0");
  box.click();
  say("hidden", [...document.querySelectorAll("path.s0")].every(p => getComputedStyle(p).display === "none"));
  const small = [...document.querySelectorAll("button, label, nav a, summary")].filter(e => e.offsetHeight < 24);
  say("large", small.length === 0);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium-headless-shell")
@pytest.mark.parametrize("width", [400, 1000, 1600])
@pytest.mark.parametrize("kind", [run, study], ids=["run", "study"])
def test_the_page_opens_without_a_message_and_does_what_it_says(tmp_path, kind, width):
    report.run([str(kind(tmp_path / "it")), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    (tmp_path / "probed.html").write_text(text.replace("</body>", f"{PROBE}</body>"))
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
    words += [f"--window-size={width},2000", "--virtual-time-budget=4000", f"--user-data-dir={tmp_path / 'profile'}"]
    words += [f"--screenshot={tmp_path / 'page.png'}", f"file://{tmp_path / 'probed.html'}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    messages = re.findall(r'CONSOLE.*?\] "(.*?)", source', done.stderr)
    assert [text for text in messages if not text.startswith("probe ")] == []
    found = dict(text.removeprefix("probe ").split("=") for text in messages)
    wanted = ("width", "falls", "rises", "switched", "drawn", "hidden", "large")
    assert found == {**dict.fromkeys(wanted, "true"), "told": "ascending"}
    assert (tmp_path / "page.png").stat().st_size > 10_000
