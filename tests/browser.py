"""A real browser for the tests of pages: Chromium, driven by Playwright, audited by axe-core."""

import shutil
from dataclasses import dataclass, field
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",  # root has none
    "--use-fake-device-for-media-stream",  # a camera that shows a test picture
    "--use-fake-ui-for-media-stream",  # and may be used
)
PHONE = {"width": 375, "height": 740}
DESKTOP = {"width": 1280, "height": 900}


def executable():
    """This machine's Chromium; None if it has none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def start():
    """Playwright and its Chromium; both are to be ended."""
    from playwright.sync_api import sync_playwright

    playwright = sync_playwright().start()
    return playwright, playwright.chromium.launch(executable_path=executable(), args=FLAGS)


@dataclass
class Tab:
    """A page, with what went wrong on it and whom it asked.

    Attributes:
        page: Playwright's.
        errors: what scripts threw, and what the console shows as errors; the test fails at its end
            if any is left.
        hosts: those that were asked for anything, with ports.
    """

    page: object
    errors: list = field(default_factory=list)
    hosts: set = field(default_factory=set)

    def __post_init__(self):
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url):
        parts = urlsplit(url)
        if parts.scheme not in ("blob", "data", "file"):
            self.hosts.add(parts.netloc)

    def audit(self):
        """What axe-core finds wrong with the page as it is now: `rule: element` each."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]

    def is_wider_than_its_window(self):
        """Whether one has to scroll sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
