"""How quickly does the page of `app.py` answer, and what memory does it take?

    python benchmarks/app.py
    python benchmarks/app.py --checkpoint checkpoints/best.pt

Time: a picture sent to a running app.py, until its whole answer is there (read, captioned, each
word weighed), against `Captioner.describe` alone, in another process. Memory: the server's, with 50
pictures sent at once against one after the other, and after 1,000 requests against 100. Without
--checkpoint weights are random: captions mean nothing, but are as long as real ones.
"""

from __future__ import annotations

import http.client
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bench import ROOT, Row, arguments, draw, in_turn, save_model, tell
from bench import main as run_benchmark

from captioner import Captioner
from pictures import read_image, transform

FEW, MANY, AT_ONCE = 100, 1000, 50


@contextmanager
def serving(trained: Path) -> Iterator[tuple[str, int]]:
    """A running app.py: its host with port, and its process."""
    command = [sys.executable, ROOT / "app.py", "--checkpoint", trained, "--port", "0"]
    command += ["--no-browser", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process.stdout.readline().strip().removeprefix("http://"), process.pid
        finally:
            process.terminate()


def ask(host: str, picture: bytes) -> None:
    """Send a picture and read the whole answer."""
    connection = http.client.HTTPConnection(host)
    connection.request("POST", "/caption", picture)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    if response.status != 200:
        sys.exit(f"app.py answered {response.status}: {answer.decode()}")


def memory(process: int, kind: str = "VmRSS") -> float:
    """What a process takes now, or took at most (``VmHWM``), in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+)", status)[1]) / 1024


def main() -> None:
    parser = arguments(__doc__, "rounds")
    parser.add_argument("--checkpoint", type=Path, help="a trained model; else random ones")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = args.checkpoint or folder / "random.pt"
        small = args.checkpoint or folder / "small.pt"
        if not args.checkpoint:
            save_model(trained, "resnet50", 224)
            save_model(small, "resnet18", 64)
        rng = random.Random(0)
        pictures = [draw(folder / f"{n}.jpg", rng) for n in range(AT_ONCE)]
        uploads = [path.read_bytes() for path in pictures]

        captioner = Captioner.load(trained)
        size = captioner.image_size
        pixels = [transform(read_image(path), size).unsqueeze(0) for path in pictures[:10]]
        with serving(trained) as (host, process):
            times = in_turn(
                {
                    "describe": lambda: [captioner.describe(each) for each in pixels],
                    "page": lambda: [ask(host, upload) for upload in uploads[:10]],
                },
                args.rounds,
            )
            for upload in uploads:
                ask(host, upload)
            one_by_one = memory(process, "VmHWM")
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda upload: ask(host, upload), uploads))
            at_once = memory(process, "VmHWM")
        with serving(small) as (host, process):
            for n in range(MANY):
                ask(host, uploads[n % AT_ONCE])
                if n + 1 == FEW:
                    before = memory(process)
            after = memory(process)

    alone, page = (np.median(times[job]) / 10 * 1000 for job in ("describe", "page"))
    tell(
        [
            Row(
                "an answer of app.py, against describing the picture alone",
                times["page"] / times["describe"],
                "x",
                1.3,
                at_most=True,
                note=f"{page:.0f} ms against {alone:.0f} ms a picture; three captions",
            ),
            Row(
                f"app.py's peak memory with {AT_ONCE} pictures at once, against one by one",
                [at_once / one_by_one],
                "x",
                1.1,
                at_most=True,
                note=f"{at_once:.0f} MiB and {one_by_one:.0f} MiB",
            ),
            Row(
                f"app.py's memory after {MANY:,} requests, against {FEW}",
                [after / before],
                "x",
                1.02,
                at_most=True,
                note=f"{after:.0f} MiB and {before:.0f} MiB",
            ),
        ]
    )


if __name__ == "__main__":
    run_benchmark(main)
