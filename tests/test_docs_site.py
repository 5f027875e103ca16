"""The pages of docs/: each has its place in the site, links lead somewhere, and the reference leaves nothing out."""

import ast
import importlib
import pathlib
import re

import pytest
import yaml

from metadd_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
FENCE = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)


def places(nav):
    """The pages of a part of the site's contents."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in places(part)]


def anchors(page):
    """The anchors of a page's headings, as GitHub and as Python-Markdown make them: only those where both agree."""
    headings = re.findall(r"^#+ (.+)$", re.sub(FENCE, "", page.read_text()), flags=re.MULTILINE)
    kept = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s", "-", text) for text in kept} & {re.sub(r"[-\s]+", "-", text) for text in kept}


def test_every_page_has_one_place_in_the_site():
    assert sorted(places(SITE["nav"])) == [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"`[^`]*`", "", re.sub(FENCE, "", page.read_text()))
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert not [link for link in links if "://" in link and not link.startswith("https://")]
    for link in (link for link in links if "://" not in link):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name}: {link}"
        # GitHub finds it anywhere; the site holds the pages of docs/ alone.
        assert page not in PAGES or target.is_relative_to(DOCS), f"{page.name}: {link} is not in the site"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_picture_is_shown_and_nothing_comes_from_a_server():
    shown = {pathlib.Path(link).name for page in TEXTS for link in re.findall(r"pictures/(\w+\.\w+)", page.read_text())}
    assert shown == {path.name for path in (DOCS / "pictures").iterdir()}
    assert SITE["theme"]["font"] is False and "offline" in SITE["plugins"]
    own = [*SITE["extra"]["polyfills"], *SITE["extra_css"]]
    assert own and all((DOCS / name).is_file() for name in own)
    drawn = [*DOCS.rglob("*.svg"), *DOCS.rglob("*.js"), *DOCS.rglob("*.css")]
    assert [path for path in drawn if re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text())] == []


def exported(room):
    """{(module, name)} that a package's ``__init__`` hands on."""
    tree = ast.parse((ROOT / "metadd_jax" / room / "__init__.py").read_text())
    names = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return {(node.module, alias.name) for node in imports for alias in node.names if alias.name in names}


def test_the_reference_has_every_public_name():
    """Of all modules but those of the job, whose options alone are anybody's."""
    shown = [name for page in PAGES for name in re.findall(r"^::: (metadd_jax\S+)$", page.read_text(), re.MULTILINE)]
    assert len(set(shown)) == len(shown)
    package, missing, rooms = ROOT / "metadd_jax", [], set()
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        module = ".".join(["metadd_jax", *parts])
        if parts[0] in ("job", "cli", "__init__") or any(part.startswith("_") for part in parts) or module in shown:
            continue
        rooms.add(parts[0])
        definitions = (
            node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        )
        own = {(module, node.name) for node in definitions if not node.name.startswith("_")}
        handed_on = exported(parts[0]) if len(parts) > 1 and f"metadd_jax.{parts[0]}" in shown else set()
        missing += sorted(own - handed_on)
    assert missing == [], "give the module a line ::: in docs/reference/"
    assert {"zoo", "distillers", "exchange"} <= rooms  # the walk has come by there
    for name in shown:
        owner, _, last = name.rpartition(".")
        importlib.import_module(owner if last[0].isupper() else name)


def test_the_reference_has_the_options_of_every_command():
    text = (DOCS / "reference" / "commands.md").read_text()
    assert re.findall(r"^## metadd (\w+)$", text, flags=re.MULTILINE) == list(cli.COMMANDS)
    for module, record in re.findall(r"^::: metadd_jax\.job\.(\w+)\.(\w+)$", text, flags=re.MULTILINE):
        assert hasattr(importlib.import_module(f"metadd_jax.job.{module}"), record)


@pytest.mark.parametrize("page", TEXTS[:2] + PAGES, ids=lambda page: page.name)
def test_names_in_code_exist(page):
    """What pages call ``mdd.room.name`` is there; the blocks are Python. (README's and extend.md's run as tests.)"""
    import metadd_jax as mdd

    text = page.read_text()
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        compile(block, page.name, "exec")
    for dotted in re.findall(r"\bmdd((?:\.\w+)+)", text):
        value = mdd
        for name in dotted.split(".")[1:]:
            assert hasattr(value, name), f"mdd{dotted}"
            value = getattr(value, name)
            if not isinstance(value, type(mdd)):
                break  # a value's own attributes are its business
