"""Draws docs/images/serving.png: a conversation on the page of `owl3 serve`, about pictures of digits and a video.

    python tools/serving_screenshot.py [--url http://127.0.0.1:8000] [--out docs/images/serving.png]

Without --url it serves the checkpoint that ships with the package. It needs Chromium and ChromeDriver.
"""

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PICTURES = Path(__file__).parents[1] / "docs/images"
TURNS: tuple[tuple[list[str], str], ...] = (
    (["red_seven.png", "blue_three.png"], "Which digit is red?"),
    (["five_digits.mkv"], "Which digit is green?"),
)
PATIENCE = 600.0  # seconds until the server is ready


def main() -> None:
    """Serves, talks and takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--out", type=Path, default=PICTURES / "serving.png")
    given = parser.parse_args()
    with contextlib.nullcontext(given.url) if given.url else served() as url, browser() as page:
        wait_until_ready(url)
        page.get(url)
        for files, question in TURNS:
            ask(page, [PICTURES / name for name in files], question)
        time.sleep(0.5)  # the last line slides in
        page.save_screenshot(str(given.out))
    print(given.out)


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of a server of our own."""
    command = [sys.executable, "-m", "owl3_jax", "serve", "--checkpoint", "digits", "--port", "0", "--sampling", "greedy"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        ports = (re.search(r'"port": (\d+)', line) for line in process.stderr)
        yield f"http://127.0.0.1:{next(port[1] for port in ports if port)}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium with a window of a laptop's size."""
    options = Options()
    options.binary_location = shutil.which("chromium") or "chromium"
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("--headless=new", "--no-sandbox", "--window-size=1280,860", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        page = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 860, "deviceScaleFactor": 1, "mobile": False}
        )
        try:
            yield page
        finally:
            page.quit()


def wait_until_ready(url: str) -> None:
    """Polls /ready."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"{url}/ready") as answer:
            if answer.status == 200:
                return
        time.sleep(1)
    raise TimeoutError(f"{url} is not ready after {PATIENCE:.0f} s")


def ask(page: webdriver.Chrome, files: list[Path], question: str) -> None:
    """Attaches files, asks, and waits for the whole answer."""
    answered = len(page.find_elements(By.CSS_SELECTOR, ".facts"))
    if files:
        page.find_element(By.ID, "files").send_keys("\n".join(map(str, files)))
        wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, "#draft li")) == len(files))
    page.find_element(By.ID, "box").send_keys(question)
    wait(page, lambda: page.find_element(By.ID, "send").is_enabled())
    page.find_element(By.ID, "send").click()
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, ".facts")) > answered)


def wait(page: webdriver.Chrome, condition: Callable[[], bool]) -> None:
    """For at most two minutes."""
    WebDriverWait(page, 120).until(lambda _: condition())


if __name__ == "__main__":
    main()
