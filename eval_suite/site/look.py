"""Pages as a browser shows them, and what does not fit: ``python -m eval_suite.site.look FOLDER PAGE|RUN ...``.

Every page is opened in headless Chromium at 1280 and 420 pixels, light and dark, and as printed. ``FOLDER`` gets a
picture of each view, and the print as PDF. What is wider than its page or cut at an edge is listed, and what a printed
page's end parts: a heading from what it is of, a paragraph under it, or the last entry of a list or row of a table from
the others. The command then ends with 1; a folder without pages ends it with 2. It needs ``pip install playwright`` and
a Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory.errors import UserError
from factory.plain import ending_in_one_line

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
VIEWS = {f"{width}-{scheme}": (width, scheme) for scheme in ("dark", "light") for width in (1280, 420)}
PAPER = (1032, 703)  # pixels of A4 across and down, less the margins that page.css asks for
LONGEST = 16_000  # pixels of a picture; what is below is in the others' width too
ALL_DRAWN = "* { content-visibility: visible !important }"  # also what a visitor has not scrolled to
# What leaves the page's width, unless it scrolls by itself or is meant for a screen reader alone; and text whose box
# hides its end.
CUT = """() => {
  const wide = document.documentElement.clientWidth + 1, found = [];
  const name = (node) => `${node.tagName.toLowerCase()}${node.id ? "#" + node.id : ""}` +
    `${typeof node.className === "string" && node.className ? "." + node.className.trim().replace(/\\s+/g, ".") : ""}` +
    ` "${(node.textContent || node.alt || "").trim().replace(/\\s+/g, " ").slice(0, 40)}"`;
  const scrolls = (node) => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
  const hides = (node) => ["hidden", "clip"].includes(getComputedStyle(node).overflowX);
  const unseen = (node) => getComputedStyle(node).clipPath !== "none" || node.closest("svg, [aria-hidden=true]");
  const visit = (node) => {
    const box = node.getBoundingClientRect(), style = getComputedStyle(node);
    if (style.display === "none" || style.visibility === "hidden" || unseen(node) || box.right <= 0) return;
    if (box.width && box.height && (box.right > wide || box.left < -1)) {
      found.push(`${name(node)} reaches from ${Math.round(box.left)} to ${Math.round(box.right)}`);
      return;
    }
    if (hides(node) && node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 1)
      found.push(`${name(node)} hides its end: ${node.scrollWidth} in ${node.clientWidth}`);
    if (scrolls(node) && PRINTED && node.scrollWidth > node.clientWidth + 1)
      found.push(`${name(node)} scrolls on paper: ${node.scrollWidth} in ${node.clientWidth}`);
    if (!scrolls(node)) for (const child of node.children) visit(child);
  };
  visit(document.body);
  return found;
}"""

# Columns as large as sheets break where sheets do; of these, a browser tells what stands on which.
PARTED = """([width, height]) => {
  document.documentElement.style.margin = "0";
  const sheet = { width: `${width}px`, height: `${height}px`, columnWidth: `${width}px` };
  Object.assign(document.body.style, { ...sheet, margin: "0", columnGap: "0", columnFill: "auto" });
  const seen = (node) => node.getClientRects().length > 0;
  const sheets = (node) => [...node.getClientRects()].map((box) => Math.floor(box.left / width + 0.01));
  const tall = (node) => [...node.getClientRects()].reduce((sum, box) => sum + box.height, 0);
  const told = (node) =>
    `${node.tagName.toLowerCase()} "${node.textContent.trim().replace(/\\s+/g, " ").slice(0, 40)}"`;
  const found = [];
  for (const head of document.querySelectorAll("h1, h2, h3, h4")) {
    let next = head;
    do {
      while (next && !next.nextElementSibling) next = next.parentElement;
      next = next && next.nextElementSibling;
    } while (next && !seen(next));
    if (!next || !seen(head)) continue;
    const [last, first] = [sheets(head).at(-1), sheets(next)[0]];
    if (first > last) found.push(`${told(head)} stands on sheet ${last + 1}, and what it is of on ${first + 1}`);
    if (next.tagName === "P" && new Set(sheets(next)).size > 1 && tall(next) < height / 2)
      found.push(`${told(next)} is split between sheets ${first + 1} and ${first + 2}`);
  }
  for (const last of document.querySelectorAll("li:last-child, tr:last-child, dd:last-child")) {
    const before = (last.tagName === "DD" ? last.previousElementSibling : last).previousElementSibling;
    if (before && seen(last) && seen(before) && sheets(last)[0] > sheets(before).at(-1))
      found.push(`${told(last)} stands alone on sheet ${sheets(last)[0] + 1}, the last of its list`);
  }
  return found;
}"""


def chromium() -> str | None:
    """Where a Chromium is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium of playwright. Raises ``UserError`` where either is not installed."""
    try:
        from playwright.sync_api import sync_playwright  # here: what draws without a browser needs none of it
    except ImportError as error:
        raise UserError(f"this needs playwright: {sys.executable} -m pip install playwright") from error

    if (found := chromium()) is None:
        raise UserError("no Chromium was found: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield opened
        opened.close()


def cut(opened: Any, address: str, out: Path | None = None) -> dict[str, list[str]]:
    """By width of a page what does not fit it, also on paper; with ``out``, a stem, each view is kept as a picture."""
    page, found, now = opened.new_page(), {}, ""
    for name, (width, scheme) in VIEWS.items():
        if scheme != now:  # a visitor of its own, as some pages ask for the scheme once and keep it
            page.close()
            page, now = opened.new_page(color_scheme=scheme), scheme
            page.goto(address)
            page.add_style_tag(content=ALL_DRAWN)
            page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(50)
        found[f"{width}"] = page.evaluate(CUT.replace("PRINTED", "false"))
        if out:
            save(page, out.with_name(f"{out.name}-{name}.png"), width)
    page.set_viewport_size({"width": PAPER[0], "height": PAPER[1]})
    page.emulate_media(media="print", color_scheme="light")
    found["print"] = page.evaluate(CUT.replace("PRINTED", "true"))
    if out:
        page.pdf(path=out.with_name(f"{out.name}.pdf"), prefer_css_page_size=True, print_background=True)
    found["print"] += page.evaluate(PARTED, PAPER)
    page.close()
    return {name: wrong for name, wrong in found.items() if wrong}


def save(page: Any, picture: Path, width: int) -> None:
    """All of a page as a picture, in its own colours."""
    tall = min(LONGEST, page.evaluate("document.documentElement.scrollHeight"))
    page.screenshot(path=picture, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": tall})


def pages_of(what: Sequence[Path]) -> list[tuple[str, Path]]:
    """A name and a file for each page: of a run its report and its samples, of a folder all its pages. A name is the
    end of the page's path, as much of it as no other page shares.
    """
    ends: dict[Path, list[str]] = {}
    for each in what:
        report = [each / "report" / name for name in ("index.html", "samples.html")]
        pages = [page for page in report if page.is_file()] or (
            [each] if each.is_file() else sorted(each.rglob("*.html"))
        )
        if not pages:
            raise UserError(f"{each}: there is no page in it")
        for page in map(Path.resolve, pages):
            parts = page.with_suffix("").parts[1:]
            ends[page] = ["-".join(parts[-depth:]) for depth in range(min(3, len(parts)), len(parts) + 1)]
    known = Counter(end for own in ends.values() for end in own)
    return [
        (next((end for end in own if known[end] == 1), f"{own[-1]}-{number}"), page)
        for number, (page, own) in enumerate(ends.items(), 1)
    ]


@ending_in_one_line()
def main(words: Sequence[str] | None = None) -> None:
    """Look at pages, as the module says."""
    parser = argparse.ArgumentParser(prog="python -m eval_suite.site.look", description=main.__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the pictures go")
    parser.add_argument("what", type=Path, nargs="+", metavar="PAGE|RUN", help="a page, a run, or a folder of pages")
    args = parser.parse_args(words)
    pages, wrong = pages_of(args.what), False
    args.folder.mkdir(parents=True, exist_ok=True)
    with browser() as opened:
        for name, page in pages:
            for view, told in cut(opened, page.as_uri(), args.folder / name).items():
                wrong = True
                print(f"{page} ({view}):", *told, sep="\n  ")
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
