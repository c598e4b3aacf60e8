"""The static site: lessons, exercises, documents, API reference, traces, search, and the live page. Builds offline.

    python3 course.py site [OUT]        site/build/site by default

Lessons keep their stored outputs, formulas are drawn by matplotlib, and no page asks another host for anything. The
live page needs Node and, once, npm; without Node it is left out. Links to the source and to Colab need the address of
a repository: TINYOMNI_REPOSITORY=OWNER/NAME. Without it they are left out, since there is nothing to point to.
"""

import ast
import html
import io
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import mistune
import nbformat
from matplotlib import mathtext
from matplotlib.font_manager import FontProperties
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

TOP = Path(__file__).resolve().parent.parent
REPOSITORY = os.environ.get("TINYOMNI_REPOSITORY", "").strip("/")
FOLDERS = {"notebooks": "Lessons", "exercises": "Exercises"}
PARTS = re.compile(r"(<(pre|code|script|style|svg)\b.*?</\2>|<[^>]+>)", re.DOTALL)
MATH = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL)
LINK = re.compile(r'(?P<tag><(?:a|img)\b[^>]*?\b)(?P<name>href|src)="(?P<target>[^"#]*)(?P<anchor>#[^"]*)?"')
FOLD = '<details class="folded"><summary>{}</summary>'
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} · tinyomni</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><link rel="stylesheet" href="{up}site.css"></head>
<body><a class="skip" href="#main">Skip to the text</a><nav aria-label="Site"><a href="{up}index.html">tinyomni</a>
{live}<a href="{up}docs/glossary.html">glossary</a>
<a href="{up}docs/cheat_sheet.html">shapes</a><a href="{up}api.html">API</a><a href="{up}traces/index.html">traces</a>
<a href="{up}search.html">search</a></nav>
<main id="main">{body}</main></body></html>
"""
SEARCH = """<h1>Search</h1><label for="q">Words that a page holds</label><input id="q" type="search" autofocus>
<p id="count" role="status"></p><ol id="found"></ol>
<script type="application/json" id="pages">%s</script><script>
const get = (id) => document.getElementById(id), pages = JSON.parse(get("pages").textContent);
function score(page, words) {
  let sum = 0;
  for (const word of words) {
    const times = page.text.split(word).length - 1 + 50 * page.title.toLowerCase().includes(word);
    if (!times) return 0;
    sum += Math.min(times, 60);
  }
  return sum;
}
function item(page, words) {
  const li = document.createElement("li"), a = document.createElement("a"), p = document.createElement("p");
  const at = Math.max(0, page.text.indexOf(words[0]) - 60);
  a.href = page.address, a.textContent = page.title, p.textContent = "… " + page.text.slice(at, at + 160) + " …";
  li.append(a, p);
  return li;
}
get("q").addEventListener("input", () => {
  const words = get("q").value.toLowerCase().split(/\\s+/).filter(Boolean);
  const hits = words.length ? pages.map((page) => [score(page, words), page]).filter(([s]) => s) : [];
  hits.sort((a, b) => b[0] - a[0]);
  get("count").textContent = words.length ? `${hits.length} pages` : "";
  get("found").replaceChildren(...hits.slice(0, 30).map(([, page]) => item(page, words)));
});</script>"""


@cache
def formula(tex: str, block: bool = False) -> str:
    """A formula as an image with its TeX as alternative text; as code where matplotlib cannot set it."""
    text = re.sub(r"\\[!;,]|\\q?quad\b", " ", " ".join(tex.split())).replace(r"\top", "T")
    text = re.sub(r"\\(?:big|Big|bigg|Bigg)(?=[()\[\]|])", "", text).replace(r"\text{", r"\mathrm{")
    if block:
        text = text.replace(r"\frac", r"\dfrac")
    drawn = io.BytesIO()
    try:
        with matplotlib.rc_context({"savefig.transparent": True}):
            mathtext.math_to_image(f"${text}$", drawn, prop=FontProperties(size=12), format="svg")
    except ValueError:  # matplotlib knows a part of TeX
        return f"<code>{html.escape(tex)}</code>"
    data = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawn.getvalue().decode(), flags=re.DOTALL)
    svg = data[data.index("<svg") :].replace("#", "%23").replace('"', "'").replace("\n", " ")
    return f'<img class="formula" alt="{html.escape(tex)}" src="data:image/svg+xml,{svg}">'


def with_formulas(body: str) -> str:
    """Draw what stands between dollars, outside of code."""

    def draw(match: re.Match[str]) -> str:
        if match["block"]:
            return f'<div class="block">{formula(html.unescape(match["block"]), block=True)}</div>'
        return formula(html.unescape(match["inline"]))

    found, at = [], 0
    for part in PARTS.finditer(body):
        found += [MATH.sub(draw, body[at : part.start()]), part[0]]
        at = part.end()
    return "".join(found) + MATH.sub(draw, body[at:])


def highlighting() -> str:
    """Colours of code for both schemes, from Pygments."""
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    plain = re.compile(r"^\.highlight \{.*\}$|^pre \{.*\}$|^td\.linenos.*$|^span\.linenos.*$", re.MULTILINE)
    return plain.sub("", light) + "@media screen and (prefers-color-scheme: dark) {\n" + plain.sub("", dark) + "}\n"


def folded(body: str, cells: list[nbformat.NotebookNode]) -> str:
    """Code and outputs that a lesson hides open at a click, as they do in JupyterLab."""
    first, *parts = body.split('<div class="cell ')
    for number, (part, cell) in enumerate(zip(parts, cells, strict=True)):
        hidden = cell.metadata.get("jupyter", {})
        part, wrapper, outputs = part.partition('<div class="output_wrapper">')
        if hidden.get("source_hidden") and wrapper:
            part = part.replace('<div class="input">', f'{FOLD.format("code")}<div class="input">') + "</details>"
        if hidden.get("outputs_hidden") and wrapper:
            wrapper = FOLD.format("output") + wrapper
            outputs = re.sub(r"</div>\s*$", "</details></div>\n", outputs)
        parts[number] = part + wrapper + outputs
    return '<div class="cell '.join([first, *parts])


class Site:
    """The folder that is being written, and what search knows of it."""

    def __init__(self, out: Path, has_live: bool) -> None:
        self.out, self.has_live = out, has_live
        self.exporter = HTMLExporter(template_name="basic")  # one for all: it keeps its compiled templates
        self.index: list[dict[str, str]] = []
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        style = (TOP / "site" / "site.css").read_text(encoding="utf-8")
        (out / "site.css").write_text(style + highlighting(), encoding="utf-8")

    def links(self, body: str, address: str) -> str:
        """Links to notebooks and documents lead to their pages, images are copied, links to the source need a base."""

        def mend(match: re.Match[str]) -> str:
            target, anchor = match["target"], match["anchor"] or ""
            if not target or re.match(r"[a-z]+:", target):
                return match[0]
            path = posixpath.normpath(posixpath.join(posixpath.dirname(address), unquote(target)))
            if re.fullmatch(r"(notebooks|exercises|docs)/\w+\.(ipynb|md)", path):
                page = re.sub(r"\.(ipynb|md)$", ".html", target)
                return f'{match["tag"]}{match["name"]}="{page}{anchor}"'
            if path.endswith((".png", ".svg")) and (TOP / path).is_file():
                (self.out / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(TOP / path, self.out / path)
                return match[0]
            if REPOSITORY:
                return f'{match["tag"]}href="https://github.com/{REPOSITORY}/blob/main/{path}{anchor}"'
            return f'{match["tag"]}data-file="{path}"'

        return LINK.sub(mend, body)

    def page(self, address: str, title: str, body: str, text: str = "") -> None:
        """Write one page; `text`: what search finds in it, by default all of it."""
        up = "../" * address.count("/")
        file = self.out / address
        file.parent.mkdir(parents=True, exist_ok=True)
        live = f'<a href="{up}live/index.html">live</a>' if self.has_live else ""
        page = TEMPLATE.format(title=html.escape(title), up=up, body=body, live=live)
        file.write_text(page, encoding="utf-8")
        text = text or re.sub(r"<(script|style|svg)\b.*?</\1>|<[^>]+>", " ", body, flags=re.DOTALL)
        words = " ".join(html.unescape(text).lower().replace("¶", "").split())
        self.index.append({"address": address, "title": title, "text": words[:20_000]})

    def notebook(self, path: Path, before: Path | None, after: Path | None) -> str:
        """A notebook with its stored outputs, and the way to the ones beside it; its title."""
        book = nbformat.read(path, as_version=4)
        body = folded(self.exporter.from_notebook_node(book)[0], book.cells)
        body = re.sub(r'<script\b.*?</script>|<a class="anchor-link".*?</a>', "", body, flags=re.DOTALL)
        first = (line for cell in book.cells for line in cell.source.splitlines() if line.startswith("#"))
        title = re.sub(r"^#+ ", "", next(first, path.stem))
        folder = path.parent.name
        if REPOSITORY:
            colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/{folder}/{path.name}"
            body = f'<p><a href="{colab}">Open in Colab</a></p>{body}'
        ways = [
            f'<a href="{each.stem}.html">{text}</a>' if each else "<span></span>"
            for each, text in ((before, "← the one before"), (after, "the next one →"))
        ]
        body = with_formulas(self.links(body, f"{folder}/{path.name}"))
        # the cells give the words to search for: the outputs are mostly images
        words = html.escape(" ".join(cell.source for cell in book.cells))
        self.page(f"{folder}/{path.stem}.html", title, f'{body}<p class="turn">{"".join(ways)}</p>', words)
        return title

    def document(self, path: Path) -> None:
        """A page of docs/."""
        text = path.read_text(encoding="utf-8")
        body = str(mistune.create_markdown(escape=False, plugins=["table"])(text))
        title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), path.stem)
        self.page(f"docs/{path.stem}.html", title, with_ids(self.links(body, f"docs/{path.name}")))

    def api(self) -> None:
        """Every public class, method and function with its first paragraph, read from the source."""
        body = ["<h1>API</h1><p>Read from the docstrings. What the course uses imports from <code>tinyomni</code>.</p>"]
        modules = {path: module_of(path) for path in sorted((TOP / "tinyomni").rglob("*.py"))}
        listed = "".join(f'<li><a href="#{name}">{name}</a></li>' for name in modules.values())
        body.append(f"<details><summary>{len(modules)} modules</summary><ul>{listed}</ul></details>")
        for path, name in modules.items():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            body.append(f'<h2 id="{name}">{name}</h2><p>{first_paragraph(tree)}</p><dl>')
            for node in tree.body:
                body += entry(node, "")
                if isinstance(node, ast.ClassDef):
                    body += [line for inner in node.body for line in entry(inner, f"{node.name}.")]
            body.append("</dl>")
        self.page("api.html", "API", "\n".join(body))

    def traces(self) -> None:
        """An answer of the shipped model and the six pipelines of the dry run, as the tracer draws them."""
        from tinyomni import Omni, dry_run
        from tinyomni.tracing import html as pages
        from tinyomni.tracing import trace

        shipped = Omni.from_pretrained()
        with trace("An answer to an image and a question") as seen:
            shipped.generate("What colour is the star?", dry_run.IMAGE)
        found = {"answer": seen}
        omni, inputs = dry_run.build(), dry_run.default_inputs()
        found |= {name: dry_run.traced(name, omni, inputs) for name in dry_run.PIPELINES}
        titles = {"answer": seen.title} | {name: dry_run.load_spec(name).title for name in dry_run.PIPELINES}
        for name, each in found.items():
            intro = f"<h1>{html.escape(titles[name])}</h1><p>Each call of this run with its shapes."
            table = f'</p><div class="trace">{pages.fragment(each, to_scale=True)}</div>'
            self.page(f"traces/{name}.html", f"Trace: {titles[name]}", intro + table, titles[name])
        listed = "".join(f'<li><a href="{name}.html">{html.escape(title)}</a></li>' for name, title in titles.items())
        self.page("traces/index.html", "Traces", f"<h1>Traces</h1><ul>{listed}</ul>")


def with_ids(body: str) -> str:
    """Headings get the ids that links within the documents use, as GitHub makes them."""

    def mark(match: re.Match[str]) -> str:
        words = re.sub(r"<[^>]+>", "", html.unescape(match[2])).lower()
        name = re.sub(r"[^\w -]", "", words).strip().replace(" ", "-")
        return f'<h{match[1]} id="{name}">{match[2]}</h{match[1]}>'

    return re.sub(r"<h([1-6])>(.*?)</h\1>", mark, body, flags=re.DOTALL)


def module_of(path: Path) -> str:
    """`tinyomni.io.images`."""
    return ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__")


def first_paragraph(node: ast.AST) -> str:
    """Of a docstring, as HTML."""
    text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text.split("\n\n")[0]))


def entry(node: ast.stmt, inside: str) -> list[str]:
    """A line of the API reference; none for what is private or says nothing."""
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_") or not first_paragraph(node):
        return []
    arguments = f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef) else ""
    returned = f" → {ast.unparse(node.returns)}" if isinstance(node, ast.FunctionDef) and node.returns else ""
    name = html.escape(inside + node.name + arguments + returned)
    return [f"<dt><code>{name}</code></dt><dd>{first_paragraph(node)}</dd>"]


def live(out: Path) -> None:
    """The live page: export the graphs unless they are there, and bundle the scripts."""
    from tinyomni.onnx.export import graphs_of

    here, models = TOP / "site" / "live", graphs_of(None, TOP / "site" / "build" / "model", print)
    npm = [shutil.which("npm") or "npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
    if not (here / "node_modules" / "esbuild").is_dir():
        subprocess.run(npm, cwd=here, check=True)
    subprocess.run(["node", str(here / "build.mjs"), str(models), str(out)], check=True)


def build(out: Path, with_live: bool, with_traces: bool = True, which: str = "*") -> Site:
    """Write all pages into a folder, which is made new. `which`: of the lessons and exercises only these."""
    site = Site(out, with_live)
    lists = []
    for name, heading in FOLDERS.items():
        paths = sorted((TOP / name).glob(f"{which}.ipynb"))
        beside = zip([None, *paths[:-1]], paths, [*paths[1:], None], strict=True)
        titles = {path: site.notebook(path, before, after) for before, path, after in beside}
        items = (f'<li><a href="{name}/{path.stem}.html">{html.escape(titles[path])}</a></li>' for path in paths)
        lists.append(f"<h2>{heading}</h2><ul>{''.join(items)}</ul>")
    documents = sorted((TOP / "docs").glob("*.md"))
    for path in documents:
        site.document(path)
    titles = {each["address"]: each["title"] for each in site.index}
    items = (f'<li><a href="docs/{path.stem}.html">{titles[f"docs/{path.stem}.html"]}</a></li>' for path in documents)
    lists.append(f"<h2>Documents</h2><ul>{''.join(items)}</ul>")
    site.api()
    if with_traces:
        site.traces()
    if with_live:
        live(out / "live")
    top = "<h1>tinyomni</h1><p>An omni model from scratch: text, images and speech in, text and speech out.</p>"
    if with_live:
        top += '<p><a href="live/index.html">The trained model, live in this tab</a></p>'
    if REPOSITORY:
        codespace = f"https://codespaces.new/{REPOSITORY}"
        top += f'<p><a href="https://github.com/{REPOSITORY}">Source</a> · <a href="{codespace}">Codespace</a></p>'
    site.page("index.html", "An omni model from scratch", top + "".join(lists))
    site.page("search.html", "Search", SEARCH.replace("%s", json.dumps(site.index).replace("</", "<\\/")), "search")
    return site


class Page(HTMLParser):
    """What a page holds that can be wrong: ids, links, what it loads, and images without a description."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.nameless = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect from one element."""
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.loads += [found[name] for name in ("src", "srcset", "poster") if name in found]
        self.loads += [found["href"]] if tag == "link" else []
        self.nameless += tag == "img" and not found.get("alt", "").strip()


def faults(out: Path) -> list[str]:
    """Everything wrong on the pages below a folder: dead links, missing descriptions, requests to other hosts."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}
    found = []
    for path, page in pages.items():
        name = path.relative_to(out.resolve()).as_posix()
        found += [f"{name}: {page.nameless} images without alt"] if page.nameless else []
        for each in page.loads:
            if re.match(r"(https?:)?//", each):
                found.append(f"{name}: loads {each}")
            elif not each.startswith("data:") and each and not (path.parent / unquote(each)).is_file():
                found.append(f"{name}: {each} is missing")
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            if not file.is_file():
                found.append(f"{name}: dead link {link}")
            elif anchor and file in pages and not {anchor, unquote(anchor)} & pages[file].ids:
                found.append(f"{name}: no such place {link}")
    return found


def main(folder: str) -> int:
    """Build everything; the number of pages and the size are printed, and what is wrong."""
    has_node = shutil.which("node") is not None
    site = build(Path(folder), with_live=has_node)
    if has_node:
        shutil.copytree(site.out / "live", TOP / "site" / "build" / "live", dirs_exist_ok=True)
    else:
        print("Node 20 or newer is not installed: the live page is left out")
    sizes = {path: path.stat().st_size / 1e6 for path in site.out.rglob("*") if path.is_file()}
    of_live = sum(size for path, size in sizes.items() if path.is_relative_to(site.out / "live"))
    total = sum(sizes.values())
    print(f"{site.out}: {len(site.index)} pages, {total:.1f} MB, of which the live page takes {of_live:.1f} MB")
    wrong = faults(site.out)
    print("\n".join(wrong) or "every link leads somewhere, every image is described, nothing comes from another host")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or [str(TOP / "site" / "build" / "site")])))
