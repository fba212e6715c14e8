"""Draw the picture of the page for docs/app.md: drawn scenes, captioned by the demo's model.

python train.py --demo
python benchmarks/draw_page.py
"""

import argparse
import subprocess
import sys
from pathlib import Path

from bench import ROOT
from bench import main as run_benchmark
from PIL import Image

sys.path.insert(0, str(ROOT / "tests"))
import browser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints/demo/best.pt")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/page.png")
    args = parser.parse_args()

    command = [sys.executable, ROOT / "app.py", "--checkpoint", args.checkpoint, "--port", "0"]
    command += ["--no-browser", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            draw(process.stdout.readline().strip(), args.output)
        finally:
            process.terminate()
    with Image.open(args.output) as image:
        rgb = image.convert("RGB")
        dithered = rgb.quantize(palette=rgb.quantize())  # to 256 colours: half the bytes
        dithered.save(args.output, optimize=True)
    print(args.output)


def draw(address: str, output: Path) -> None:
    """Caption two scenes, open a map and save the whole page."""
    playwright, chromium = browser.start()
    try:
        page = chromium.new_page(viewport={"width": 1120, "height": 1000})
        page.goto(address)
        for scene in (4, 6):
            page.locator("#samples button").nth(scene).click()
            page.locator("#status", has_text=f"drawn scene {scene + 1}").wait_for()
        page.get_by_role("button", name="What each word saw").first.click()
        page.locator("canvas:visible").wait_for()
        page.screenshot(path=output, full_page=True)
    finally:
        chromium.close()
        playwright.stop()


if __name__ == "__main__":
    run_benchmark(main)
