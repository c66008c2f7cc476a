"""The playground as a browser shows it: ``python -m eval_suite.play.shots FOLDER [WHAT]``.

It serves ``WHAT`` (default: the shipped model), opens it in headless Chromium at 1280 and 420 pixels, light and dark,
asks, moves the slider, and saves what is then seen. It needs the extra ``play``, ``pip install playwright`` and a
Chromium. Docs' picture: ``python -m eval_suite.play.shots docs --only play``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_suite.play.opening import open_session
from eval_suite.play.page import serve
from eval_suite.site.look import VIEWS, browser
from factory.plain import ending_in_one_line

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE = 120_000  # milliseconds


def shown(page: Page, address: str, strength: float) -> list[str]:
    """Open the page, wait for all of it, and steer at ``strength``; returns what went wrong in the browser."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:", "blob:")) else wrong.append(request.url),
    )
    page.goto(address)
    page.wait_for_selector(".sf-maps img", timeout=PATIENCE)
    slider = page.get_by_label("number input for Strength")
    slider.fill(f"{strength:g}")
    slider.press("Enter")
    page.wait_for_selector(f'svg[aria-label*="at {strength:g}:"]', timeout=PATIENCE)
    page.wait_for_timeout(1500)
    if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        wrong.append(f"the page is wider than its {page.viewport_size['width'] if page.viewport_size else '?'} pixels")
    return wrong


def shoot(address: str, folder: Path, views: dict[str, tuple[int, str]], strength: float) -> dict[str, list[str]]:
    """Save every view of a served page into ``folder``; returns by view what went wrong in the browser."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    with browser() as opened:
        for name, (width, scheme) in views.items():
            how: dict[str, Any] = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
            page = opened.new_page(**how)
            found[name] = shown(page, address, strength)
            page.screenshot(path=folder / f"{name}.png", full_page=True)
            page.close()
    return found


@ending_in_one_line()
def main() -> None:
    """Serve, look, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", nargs="?")
    parser.add_argument("--only", metavar="NAME", help="one picture, 1280 pixels wide and light, of this name")
    parser.add_argument("--strength", type=float, default=1.5)
    args = parser.parse_args()
    session = open_session(args.what)
    views = {args.only: (1280, "light")} if args.only else {f"play-{name}": view for name, view in VIEWS.items()}
    with tempfile.TemporaryDirectory() as exports:
        blocks, address = serve(session, "127.0.0.1", 0, Path(exports))
        for name, wrong in shoot(address, args.folder, views, args.strength).items():
            print(args.folder / f"{name}.png", *wrong, sep="\n  ")
        blocks.close(verbose=False)
        session.close()


if __name__ == "__main__":
    main()
