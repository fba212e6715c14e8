"""A page to try a trained model on: `python app.py`, then drop pictures on it.

Serves the page in `page/` to this machine alone, and answers it, and programs, in JSON: pictures
in, captions out. Keeps nothing of what it is sent. docs/app.md says how to ask.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import cli
from cli import option


@dataclass(frozen=True)
class Settings(cli.SamplingSettings):
    """Open a page in the browser that captions pictures with a trained model."""

    EXAMPLES: ClassVar = (
        "python app.py",
        "python app.py --checkpoint checkpoints/demo/best.pt --port 9000",
    )

    checkpoint: tuple[Path, ...] = option(
        (Path("checkpoints/best.pt"),), "the trained model, or an ensemble", group="model"
    )
    device: str = option("auto", "where to compute", choices=cli.DEVICES)
    n_best: int = option(3, "captions for each picture, best first", at_least=1, group="captions")
    port: int = option(
        8000,
        "of the page; if it is taken, one after it; 0: any",
        at_least=0,
        below=2**16,
        group="page",
    )
    browser: bool = option(True, "open the page in the browser")
    quiet: bool = option(False, "no notes, only the page's address and errors", group="run")
    debug: bool = option(False, "show where an error comes from")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (_, _, most) in LIMITS.items():
            if getattr(self, name) > most:
                raise ValueError(
                    f"{cli.flag(name)} must be at most {most} for a page, got {getattr(self, name)}"
                )


LIMITS: dict[str, tuple[type[int] | type[float], int, int]] = {  # of what a request may ask for
    "beam_size": (int, 1, 100),
    "temperature": (float, 0, 10),
    "n_best": (int, 1, 20),
}

if __name__ == "__main__":  # before the slow imports
    cli.answer_at_once(Settings)

import errno
import importlib.util
import io
import json
import logging
import math
import os
import random
import socket
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

import torch

import checkpoint
import demo
import explain
from captioner import Caption, Captioner
from checkpoint import Checkpoint
from cli import UserError
from explain import Word
from model import UNK
from pictures import Source, as_jpeg, read_image, read_thumbnail, transform

if TYPE_CHECKING:
    from flask import Flask, Response

A = TypeVar("A")
T = TypeVar("T")

HOST = "127.0.0.1"  # and no other: there is no password
PORTS_TRIED = 20
LARGEST_UPLOAD = 64 * 2**20  # bytes
LONGEST = 100  # words of a caption to explain
SILENCE = 30.0  # seconds without a byte of an upload, after which it is given up
PREVIEW_SIZE = 640  # pixels, the longer side
N_SAMPLES, SAMPLE_SIZE, SAMPLE_SEED = 8, 320, 2027  # drawn scenes; those of the demo have seed 0
POLICY = "; ".join(  # the page needs its own files, and pictures in memory
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'"),
        *("img-src 'self' blob:", "connect-src 'self'"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    )
)

log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------ the model


class Worker:
    """The model, with what requests can ask of it; one at a time."""

    def __init__(self, ensemble: Sequence[Checkpoint], asked: Mapping[str, Any]) -> None:
        """Fold the encoders; ``asked`` are ``n_best`` and settings of the search, by name."""
        self._asked = asked
        self.captioner = Captioner(ensemble, asked, n_best=asked["n_best"])
        self.about = {
            "cards": [checkpoint.model_card(trained) for trained in ensemble],
            "defaults": {
                "beam_size": self.captioner.search.beam_size,
                "temperature": self.captioner.search.temperature,
                "n_best": self.captioner.n_best,
            },
            "limits": {name: limits for name, (_, *limits) in LIMITS.items()},
            "largest_upload": LARGEST_UPLOAD,
            "samples": [sample(number)[1] for number in range(N_SAMPLES)],
        }
        self.n_words = len(self.captioner.vocabulary)

    def caption(self, upload: IO[bytes], asked: Mapping[str, Any]) -> dict[str, Any]:
        """Caption an uploaded picture, searching as ``asked``.

        Raises:
            UserError: it cannot be read.
        """
        pixels = self._pixels(upload)
        asked = {**self._asked, **asked}
        if not asked.get("temperature"):
            asked.pop("top_p", None)  # of sampled captions
        captioner = self.captioner.with_search(asked, n_best=asked["n_best"])
        features = captioner.encode(pixels.unsqueeze(0))  # once, for captions and words
        captions = captioner.describe_features(features)[0]
        words = explain.words_of(captioner, features, [caption.tokens for caption in captions])
        return {
            "familiarity": captions[0].familiarity,
            "is_unfamiliar": captions[0].is_unfamiliar,
            "captions": list(map(plain, captions, words)),
        }

    def maps(self, upload: IO[bytes], tokens: Sequence[int]) -> dict[str, Any]:
        """What each word of a caption of an uploaded picture saw, and its end.

        Returns:
            By name ``maps`` (T, G, G) and ``dependence`` (T,) as ``explain.occlusion`` has them.

        Raises:
            UserError: the picture cannot be read.
        """
        found = explain.occlusion(self.captioner, self._pixels(upload), tokens)
        return {"maps": found.maps.tolist(), "dependence": found.dependence.tolist()}

    def preview(self, upload: IO[bytes], size: int) -> bytes:
        """An uploaded picture, small, as a JPEG: for a browser that cannot show its format.

        Raises:
            UserError: it cannot be read.
        """
        return as_jpeg(read_thumbnail(received(upload), size), quality=85)

    def _pixels(self, upload: IO[bytes]) -> torch.Tensor:
        size = self.captioner.image_size
        return transform(read_image(received(upload), size=size), size)


class Turns:
    """Jobs that many threads ask for, done in one, in the order they come.

    A picture is not even taken in before its turn, so that many at once need no more memory than
    one. The one thread is the main thread: the memory of others glibc gives back to the system
    after each picture and takes anew for the next, a third of a ResNet-50's time for a caption.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()

    def do(self, job: Callable[[], T]) -> T:
        """What the job returns, or raises, once its turn has come."""
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future.result()

    def work(self) -> NoReturn:
        """Do the jobs in this thread, until Ctrl-C."""
        while True:
            with suppress(Empty):
                job, future = self._jobs.get(timeout=1)  # on Windows Ctrl-C waits for its end
                try:
                    future.set_result(job())
                except Exception as error:
                    future.set_exception(error)


def received(upload: IO[bytes]) -> Source:
    """An uploaded picture, not decoded yet."""
    content = upload.read()
    upload.read(1)  # an upload of unknown length that is too long is cut off: only this tells
    return Source(Path("the file"), content=content)


def plain(caption: Caption, words: Sequence[Word]) -> dict[str, Any]:
    """A caption as JSON has it; its familiarity is the picture's."""
    found = {name: value for name, value in asdict(caption).items() if name != "familiarity"}
    return {**found, "words": [word._asdict() for word in words]}


@cache
def sample(number: int) -> tuple[bytes, str]:
    """A drawn scene to try: a PNG, and what is on it."""
    rng = random.Random(SAMPLE_SEED + number)
    scene = demo.random_scene(rng)
    file = io.BytesIO()
    demo.paint(scene, SAMPLE_SIZE).save(file, "PNG")
    text = demo.captions(scene, rng)[0]
    return file.getvalue(), text.replace(" .", ".").replace(" ,", ",")


# ------------------------------------------------------------------------------- the page


def make_app(worker: Worker, turns: Turns) -> Flask:
    """The page, and what it asks for; some thread has to ``work`` the turns."""
    from flask import Flask, Response, request
    from werkzeug.exceptions import Forbidden, HTTPException, NotFound, UnsupportedMediaType

    app = Flask(__name__, static_folder="page", static_url_path="/page")
    app.config.update(MAX_CONTENT_LENGTH=LARGEST_UPLOAD, TRUSTED_HOSTS=[HOST, "localhost"])

    def in_turn(job: Callable[[IO[bytes], A], T], asked: A) -> T:
        if request.mimetype == "multipart/form-data":
            example = f"curl --data-binary @photo.jpg http://{request.host}/caption"
            raise UnsupportedMediaType(f"send the picture itself, not a form: {example}")
        try:
            return turns.do(partial(job, request.stream, asked))
        except UserError as error:
            raise UnsupportedMediaType(str(error)) from error

    @app.get("/")
    def page() -> Response:
        return app.send_static_file("index.html")

    @app.get("/model")
    def model() -> dict[str, Any]:
        return worker.about

    @app.get("/samples/<int:number>.png")
    def scene(number: int) -> Response:
        if number >= N_SAMPLES:
            raise NotFound
        return Response(sample(number)[0], mimetype="image/png")

    @app.post("/caption")
    def caption() -> dict[str, Any]:
        return in_turn(worker.caption, parameters(request.args.to_dict(flat=False)))

    @app.post("/maps")
    def maps() -> dict[str, Any]:
        return in_turn(worker.maps, tokens(request.args.getlist("tokens"), worker.n_words))

    @app.post("/preview")
    def preview() -> Response:
        return Response(in_turn(worker.preview, PREVIEW_SIZE), mimetype="image/jpeg")

    @app.before_request
    def refuse_other_pages() -> None:
        """A page of another site is shown by a browser on this machine too."""
        ours = request.host_url.rstrip("/")
        if request.headers.get("Origin", ours) != ours:
            raise Forbidden("in a browser only this page itself may ask.")

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.errorhandler(HTTPException)
    def tell(error: HTTPException) -> Response:
        content = json.dumps({"error": MESSAGES.get(error.code or 500, error.description)})
        headers = [(name, value) for name, value in error.get_headers() if name != "Content-Type"]
        return Response(content, error.code, headers, mimetype="application/json")

    return app


MESSAGES: dict[int, str | None] = {  # HTTP status → what to say instead of Werkzeug's words
    404: "there is nothing at this address: docs/app.md lists what there is.",
    405: "not by this method: docs/app.md has an example.",
    413: f"the picture is larger than {LARGEST_UPLOAD // 2**20} MB: make it smaller.",
    500: "a mistake of this program, not of yours: its terminal shows what happened.",
}


def parameters(arguments: Mapping[str, list[str]]) -> dict[str, int | float]:
    """What a request asks for, by name.

    Raises:
        BadRequest: a parameter is unknown, given twice, no number or out of its range.
    """
    from werkzeug.exceptions import BadRequest

    found: dict[str, int | float] = {}
    for name, texts in arguments.items():
        if name not in LIMITS:
            raise BadRequest(f"no parameter {name[:40]!r}: there are {', '.join(LIMITS)}.")
        kind, least, most = LIMITS[name]
        try:
            (value,) = map(kind, texts)
        except ValueError:
            value = math.nan
        if not least <= value <= most:  # nan is not either
            number = "a whole number" if kind is int else "a number"
            got = " and ".join(texts)[:40]
            raise BadRequest(f"{name} must be {number} from {least} to {most}, got {got!r}.")
        found[name] = value
    try:
        cli.SamplingSettings(temperature=found.get("temperature", 0.0))
    except ValueError as error:  # nearly 0
        raise BadRequest(f"{error}.") from error
    return found


def tokens(texts: Sequence[str], n_words: int) -> list[int]:
    """The ids of a caption's words, as a request has them: ``["7,12,5"]``.

    Raises:
        BadRequest: they are none that ``/caption`` could have given.
    """
    from werkzeug.exceptions import BadRequest

    try:
        ids = [int(text) for text in ",".join(texts).split(",")]
    except ValueError:
        ids = []
    if not 0 < len(ids) <= LONGEST or not all(UNK < id_ < n_words for id_ in ids):
        raise BadRequest("tokens must be those that /caption gave, such as ?tokens=7,12,5.")
    return ids


# ----------------------------------------------------------------------------- the server


def serve(settings: Settings, given: frozenset[str]) -> NoReturn:
    """Serve the page until Ctrl-C.

    Args:
        settings: of the command line.
        given: names of those that were given as flags; the others of the search are the model's.
    """
    if importlib.util.find_spec("flask") is None:
        raise UserError("the page needs Flask: pip install -r requirements-app.txt.")
    from werkzeug.serving import WSGIRequestHandler, make_server

    asked = {"n_best": settings.n_best, **{name: getattr(settings, name) for name in given}}
    torch.manual_seed(settings.seed)
    ensemble = checkpoint.load_ensemble(settings.checkpoint, cli.device(settings.device))
    turns = Turns()
    app = make_app(Worker(ensemble, asked), turns)
    with listen(settings.port) as listener:
        port = listener.getsockname()[1]
        if port != settings.port != 0:
            log.warning(f"port {settings.port} is taken, so the page is on {port}")
        handler = type("Handler", (WSGIRequestHandler,), {"timeout": SILENCE})
        server = make_server(
            HOST, port, app, threaded=True, fd=listener.fileno(), request_handler=handler
        )
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for each request
        print(f"http://{HOST}:{port}", flush=True)
        log.info("The page is at this address, on this machine only. Ctrl-C ends it.")
        if settings.browser:
            threading.Thread(target=show, args=[f"http://{HOST}:{port}"], daemon=True).start()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        turns.work()


def listen(port: int) -> socket.socket:
    """A socket that listens to a port, or to the next that is free.

    Raises:
        UserError: none is.
    """
    last = min(port + PORTS_TRIED, 2**16) - 1 if port else 0
    for candidate in range(port, last + 1):
        listener = socket.socket()
        if os.name == "posix":  # Windows would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, candidate))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise UserError(f"no port from {port} to {last} can be used: give another --port.")


def show(address: str) -> None:
    """Open the page in the browser, if there is one that does not take over the terminal."""
    with suppress(webbrowser.Error):
        browser = webbrowser.get()
        if type(browser) is not webbrowser.GenericBrowser:  # such as w3m
            browser.open(address)


def main(argv: list[str] | None = None) -> int:
    """Serve as the command line says; the exit status."""
    settings, given = cli.parse(Settings, argv)
    return cli.run(lambda: serve(settings, given), settings)


if __name__ == "__main__":
    raise SystemExit(main())
