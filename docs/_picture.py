"""Records the README's animation: `python docs/_picture.py`, with Chromium and Pillow."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.browser import browsing  # noqa: E402
from tests.support.processes import Process, free_port  # noqa: E402

PICTURE = ROOT / "docs/images/demo.webp"
WIDTH, HEIGHT = 1000, 640
CSS = """
* { animation: none !important; transition: none !important }
.pressed { outline: 4px solid #e8590c !important; outline-offset: 2px }
#said { position: fixed; inset: auto 0 0 0; padding: 14px; text-align: center; z-index: 9;
  font: 600 20px system-ui, sans-serif; color: #fff; background: #0b7285 }
footer { visibility: hidden }
"""


class Recording:
    """Frames of a page, with how long each is shown."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.milliseconds: list[int] = []

    def say(self, text: str) -> None:
        """Show what is done, from the next frame on."""
        self.page.evaluate(
            "text => document.getElementById('said').textContent = text", text
        )

    def take(self, milliseconds: int) -> None:
        """Add the page as it is."""
        picture = Image.open(io.BytesIO(self.page.screenshot()))
        self.frames.append(
            picture.convert("RGB").resize((WIDTH * 4 // 5, HEIGHT * 4 // 5))
        )
        self.milliseconds.append(milliseconds)

    def press(self, selector: str) -> None:
        """Press a button, marked for a moment."""
        button = self.page.locator(selector)
        button.evaluate("b => b.classList.add('pressed')")
        self.take(700)
        button.click()
        button.evaluate("b => b.classList.remove('pressed')")


def record(page: Page, demo: Process) -> Recording:
    """Play the story."""
    movie = Recording(page)
    page.add_style_tag(content=CSS)
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<div id=said></div>')"
    )

    def until(expression: str) -> None:
        page.wait_for_function(expression)

    def rows(window: str, count: int) -> str:
        return f"document.querySelectorAll('[data-window={window}] tr.new').length == {count}"

    settled = "document.getElementById('waiting').textContent == '0'"
    movie.say("An order and its event, in one transaction")
    movie.press("[data-count='1']:not([data-rollback])")
    until(rows("A", 1))
    until(rows("B", 1))
    until(settled)
    movie.take(1500)
    movie.say("Rolled back: no event, no hole in the ids")
    movie.press("[data-rollback]")
    page.get_by_text("1 rolled back").wait_for()
    movie.take(1800)
    movie.say("Window B is away")
    movie.press("[data-window=B] .connection")
    movie.take(500)
    movie.press("[data-count='1']:not([data-rollback])")
    until(rows("A", 2))
    movie.take(1500)
    movie.say("… and comes back, to what it missed")
    movie.press("[data-window=B] .connection")
    until(rows("B", 2))
    movie.take(1800)
    movie.say("The worker is stopped: events wait in the database")
    movie.press("#worker")
    until("document.getElementById('worker').textContent == 'Start the worker'")
    demo.wait_until(lambda: "stopped from the page" in demo.output(), "it stops")
    movie.take(500)
    movie.press("[data-count='10']")
    until("document.getElementById('waiting').textContent == '10'")
    movie.take(1500)
    movie.say("… and started: all arrive, once and in order")
    movie.press("#worker")
    until(
        "document.querySelector('[data-window=B] .position').textContent == 'orders:12'"
    )
    until(
        "document.querySelector('[data-window=A] .position').textContent == 'orders:12'"
    )
    until(settled)
    movie.take(3500)
    return movie


def main() -> None:
    """Start a demo of its own, record, and write the picture."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory, browsing() as browser:
        argv = ["-m", "deploy.demo", "--port", str(port), "--directory", directory]
        env = {**os.environ, "REDIS_URL": "", "DATABASE_URL": ""}
        with Process([sys.executable, *argv], env=env, cwd=ROOT) as demo:
            demo.wait_until(lambda: "Ready after" in demo.output(), "it is ready")
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector("[data-window=B] .state.open")
            movie = record(page, demo)
            first, *rest = movie.frames
            first.save(
                PICTURE, save_all=True, append_images=rest, duration=movie.milliseconds,
                loop=0, quality=60, method=6,
            )  # fmt: skip
    print(f"{PICTURE}: {len(movie.frames)} frames, {PICTURE.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
