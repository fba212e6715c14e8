"""Draw the pictures of pages in the docs, of drawn scenes and the demo's model alone.

    python train.py --demo
    python benchmarks/draw_pages.py

The page of app.py, the report of evaluate.py, and TensorBoard's first screen, into docs/.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import ROOT
from bench import main as run_benchmark
from PIL import Image

sys.path.insert(0, str(ROOT / "tests"))
import browser

from logs import UNSMOOTHED

WIDE = {"width": 1120, "height": 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints/demo/best.pt")
    parser.add_argument("--runs", type=Path, default=Path("runs/image_captioning"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder")
    args = parser.parse_args()

    playwright, chromium = browser.start()
    try:
        for name, draw, what in (
            ("page", draw_app, args.checkpoint),
            ("report", draw_report, args.checkpoint),
            ("tensorboard", draw_tensorboard, args.runs),
        ):
            path = args.output / f"{name}.png"
            draw(chromium.new_page(viewport=WIDE), what, path)
            shrink(path)
            print(path)
    finally:
        chromium.close()
        playwright.stop()


def draw_app(page, checkpoint: Path, output: Path) -> None:
    """Caption two scenes and open a map."""
    command = [sys.executable, ROOT / "app.py", "--checkpoint", checkpoint, "--port", "0"]
    with running([*command, "--no-browser", "--quiet"]) as process:
        page.goto(process.stdout.readline().strip())
        for scene in (4, 6):
            page.locator("#samples button").nth(scene).click()
            page.locator("#status", has_text=f"drawn scene {scene + 1}").wait_for()
        page.get_by_role("button", name="What each word saw").first.click()
        page.locator("canvas:visible").wait_for()
        page.screenshot(path=output, full_page=True)


def draw_report(page, checkpoint: Path, output: Path) -> None:
    """The report of the validation scenes, from its beginning."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "report.html"
        command = [sys.executable, ROOT / "evaluate.py", "--checkpoint", checkpoint, "--quiet"]
        command += ["--output", path, "--explain", "0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        page.goto(path.as_uri())
        page.screenshot(path=output)


def draw_tensorboard(page, runs: Path, output: Path) -> None:
    """The first screen, as a training's last line opens it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = shutil.which("tensorboard", path=str(Path(sys.executable).parent))
    address = f"http://localhost:{port}/"
    with running([program, "--logdir", runs, "--port", str(port)]):
        for _ in range(100):
            try:
                urllib.request.urlopen(address).close()
                break
            except OSError:
                time.sleep(0.5)
        page.goto(address + UNSMOOTHED)
        page.locator("tf-custom-scalar-multi-line-chart-card").first.wait_for()
        page.wait_for_timeout(3000)  # curves are drawn bit by bit
        page.screenshot(path=output)


@contextmanager
def running(command: list) -> Iterator[subprocess.Popen]:
    """A server that is ended afterwards."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def shrink(path: Path) -> None:
    """To 256 colours: half the bytes."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    rgb.quantize(palette=rgb.quantize()).save(path, optimize=True)


if __name__ == "__main__":
    run_benchmark(main)
