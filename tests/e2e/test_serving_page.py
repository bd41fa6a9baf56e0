"""The server's page, as a person uses it: in headless Chromium, against a server whose answers the test writes."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image
from selenium.common.exceptions import (
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.e2e.browser import opened
from tests.fake_openai import FakeOpenAI, serving
from tests.videos import write_video

# an element may be replaced between the moment when it is found and that when it is used
_DRAWN_ANEW = (NoSuchElementException, StaleElementReferenceException, ElementNotInteractableException)
_BRING = """
const [kind, names, types, contents] = arguments;
const transfer = new DataTransfer();
names.forEach((name, place) => {
  const bytes = Uint8Array.from(atob(contents[place]), letter => letter.charCodeAt(0));
  transfer.items.add(new File([bytes], name, { type: types[place] }));
});
const event = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
document.dispatchEvent(kind === "drop" ? new DragEvent(kind, event) : new ClipboardEvent(kind, event));
"""


_TEXTS = """
const found = [...document.querySelectorAll(arguments[0])];
return found.filter(each => each.checkVisibility({ visibilityProperty: true })).map(each => each.innerText);
"""
_NO_ROOM = """
IDBObjectStore.prototype.put = () => { throw new DOMException("full", "QuotaExceededError"); };
"""
_TOO_WIDE = """
const all = [...document.querySelectorAll("body, main *:not(pre *)")];
return all.filter(each => each.getBoundingClientRect().right > innerWidth).map(each => each.outerHTML);
"""


class Page:
    """The page, in words of what a person sees and does."""

    def __init__(self, browser: WebDriver, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Of the elements that are visible."""
        return self.browser.execute_script(_TEXTS, selector)

    def until(self, condition: Callable[[], object]) -> None:
        wait = WebDriverWait(self.browser, 60, poll_frequency=0.05, ignored_exceptions=_DRAWN_ANEW)
        wait.until(lambda _: condition())

    def shows(self, selector: str, *parts: str) -> None:
        """Waits until one of the elements has all of the texts."""
        self.until(lambda: any(all(part in text for part in parts) for text in self.texts(selector)))

    def click(self, selector: str) -> None:
        self.until(lambda: self.find(selector).click() is None)

    def ask(self, question: str) -> None:
        self.until(lambda: not self.texts("dialog"))
        self.find("#box").send_keys(question)
        self.until(lambda: self.find("#send").is_enabled())
        self.find("#box").send_keys(Keys.ENTER)

    def choose(self, *files: Path) -> None:
        self.find("#files").send_keys("\n".join(map(str, files)))

    def bring(self, kind: str, *files: Path) -> None:
        """Drops or pastes files."""
        types = ["video/mp4" if file.suffix == ".mp4" else "image/png" for file in files]
        contents = [base64.b64encode(file.read_bytes()).decode() for file in files]
        self.browser.execute_script(_BRING, kind, [file.name for file in files], types, contents)

    def key(self, name: str) -> None:
        """Answers the question for the API key."""
        self.shows("#ask-title", "API key")
        self.find("#ask-input").send_keys(name)
        self.click("#ask-do")

    def devtools(self, command: str, **arguments: object) -> None:
        self.browser.execute_cdp_cmd(command, arguments)

    def complaints(self) -> list[str]:
        """What the console says, but for answers of the server that are errors by intention."""
        return [entry["message"] for entry in self.browser.get_log("browser") if "status of" not in entry["message"]]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[WebDriver]:
    with opened("about:blank", tmp_path_factory.mktemp("chromium") / "profile") as opened_browser:
        yield opened_browser


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    """On a port of its own: the page's storage is empty."""
    with serving() as fake:
        yield fake


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    shown = Page(browser, server.url)
    yield shown
    assert shown.complaints() == [], "the page's policy holds, and nothing was thrown"


def picture(path: Path, color: str, size: tuple[int, int] = (40, 30)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def kinds(message: dict) -> list[str]:
    return [part["type"] for part in message["content"]]


def image_of(part: dict) -> Image.Image:
    head, data = part["image_url"]["url"].split(",")
    assert head.startswith("data:image/") and head.endswith(";base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def tiles(page: Page, place: str) -> Sequence[str]:
    return page.texts(f"{place} .tile span")


def test_a_person_asks_about_two_pictures_and_a_video_stops_follows_up_and_reloads(page, server, tmp_path):
    pictures = [picture(tmp_path / f"frame_{number}.png", color) for number, color in ((10, "blue"), (2, "red"))]
    video = write_video(tmp_path / "clip.mp4", 12)
    page.choose(*pictures)
    page.until(lambda: tiles(page, "#draft") == ["image 1", "image 2"])
    page.bring("drop", video)
    page.until(lambda: tiles(page, "#draft") == ["image 1", "image 2", "video 1"])
    answer = server.stream()
    page.ask("What is there?")
    page.shows(".waiting", "Reading 2 images, 1 video")
    assert tiles(page, "#turns") == ["image 1", "image 2", "video 1"] and page.texts(".count") == ["2 images, 1 video"]

    answer.say("A red one, ")
    page.shows(".body", "A red one,")
    answer.say("then a blue")
    page.shows(".body", "A red one, then a blue")
    page.click("#stop")
    assert answer.left.wait(60), "the server is told"
    page.shows(".foot", "Stopped")
    assert page.texts(".body") == ["A red one, then a blue"]

    follow_up = server.stream()
    page.bring("paste", picture(tmp_path / "more.png", "green"))
    page.until(lambda: tiles(page, "#draft") == ["image 3"])
    page.ask("And this?")
    follow_up.say("Green.")
    follow_up.end(prompt=1200, cached=1100, completion=3)
    page.shows(".facts", "first token after", "images/s", "1,100 of 1,200 tokens cached")

    first, second = server.requests
    assert first["stream"] and first["stream_options"] == {"include_usage": True} and first["model"] == "owl3-digits"
    (question,) = first["messages"]
    assert (
        kinds(question) == ["image_url", "image_url", "video_url", "text"]
        and question["content"][-1]["text"] == "What is there?"
    )
    assert [image_of(part).getpixel((0, 0)) for part in question["content"][:2]] == [(255, 0, 0), (0, 0, 255)], (
        "frame 2, then 10"
    )
    assert (
        question["content"][2]["video_url"]["url"] == f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
    )
    assert second["messages"][:2] == [question, {"role": "assistant", "content": "A red one, then a blue"}]
    assert kinds(second["messages"][2]) == ["image_url", "text"]

    page.browser.refresh()
    page.until(lambda: page.texts(".body") == ["A red one, then a blue", "Green."])
    assert tiles(page, "#turns") == ["image 1", "image 2", "video 1", "image 3"]
    again = server.stream()
    page.ask("Once more?")
    again.say("Yes.")
    again.end()
    page.shows(".body", "Yes.")
    assert server.requests[2]["messages"][:3] == second["messages"], "what was stored is sent as it was"


def test_html_in_an_answer_stays_text_and_markup_becomes_elements(page, server):
    answer = server.stream()
    page.ask("<b>Write</b> HTML.")
    answer.say(
        "<img src=x onerror=alert(1)> **bold `<i>`**\n\n- one\n- two\n\n3. three\n"
        "```html\n<script>1</script>\n\n**no**\n```\nend"
    )
    answer.end()
    page.shows(".foot", "first token")
    assert page.texts(".bubble .text") == ["<b>Write</b> HTML."]
    assert page.find(".body p").text == "<img src=x onerror=alert(1)> bold <i>"
    assert page.texts(".body strong") == ["bold <i>"] and page.texts(".body strong code") == ["<i>"]
    assert page.texts(".body ul li") == ["one", "two"] and page.find(".body ol").get_attribute("start") == "3"
    assert page.texts(".body pre") == ["<script>1</script>\n\n**no**"]
    assert not page.browser.find_elements(By.CSS_SELECTOR, ".body img, .body script, .body i, .bubble b")


def test_a_stream_is_read_wherever_its_pieces_are_cut(page, server):
    answer = server.stream()
    page.ask("Go on.")
    text = ': a comment\r\n\r\nevent: x\r\ndata: {"choices":[{"delta":{"content":"été 🦉 "}}]}\r\n\r\n'
    answer.send(*(bytes([byte]) for byte in text.encode()))
    answer.send(b'data: {"choices": [{"delta": {"content":\ndata: "two lines"}}]}\n\n')
    answer.end(completion=3)
    page.shows(".foot", "first token")
    assert page.texts(".body") == ["été 🦉 two lines"]


def test_errors_are_told_in_words_and_retried(page, server):
    server.refuse(500, "The engine stumbled.")
    page.ask("Hello?")
    page.shows(".error", "The server failed to answer.", "The engine stumbled.")
    server.refuse(429, "Too many requests are waiting.", {"Retry-After": "600"})
    page.click(".error button")
    page.shows(".error", "The server is busy.", "Trying again in")
    server.refuse(413, "At most 4 images.")
    page.click(".error button")
    page.shows(".error", "more than the server takes", "At most 4 images.", "downscaled")
    broken = server.stream()
    page.click(".error button")
    broken.say("Half an ")
    broken.send(b'data: {"error": {"message": "A worker died.", "code": 500}}\n\n')
    page.shows(".answer", "Half an", "failed in the middle", "A worker died.")
    cut = server.stream()
    page.click(".error button")
    cut.say("Half")
    cut.cut()
    page.shows(".answer", "Half", "ended before the answer did")
    whole = server.stream()
    page.click(".error button")
    whole.say("A whole one.")
    whole.end()
    page.shows(".foot", "first token")
    assert page.texts(".body") == ["A whole one."] and not page.texts(".error")
    assert all(request["messages"] == server.requests[0]["messages"] for request in server.requests)


def test_a_busy_server_is_asked_again_when_it_said_that_it_has_time(page, server):
    server.refuse(429, "Too many requests are waiting.", {"Retry-After": "1"})
    answer = server.stream()
    page.ask("Hello?")
    answer.say("At last.")
    answer.end()
    page.shows(".body", "At last.")
    assert len(server.requests) == 2


def test_a_server_with_keys_asks_for_one(page, server):
    server.key = "a secret"
    page.browser.refresh()
    page.key("wrong")
    page.shows("#ask-text", "did not accept")
    page.key("a secret")
    answer = server.stream()
    page.ask("Hello?")
    answer.say("Hello.")
    answer.end()
    page.shows(".body", "Hello.")
    server.key = "another"
    page.ask("Still there?")
    page.shows(".error", "asks for an API key", "Incorrect API key")
    last = server.stream()
    page.key("another")
    last.say("Yes.")
    last.end()
    page.shows(".body", "Yes.")
    assert page.browser.execute_script("return JSON.stringify(localStorage)").find("another") < 0, "the key isn't kept for good"


def test_the_page_waits_for_a_server_that_compiles(page, server):
    server.ready = False
    page.browser.refresh()
    page.shows("#banner", "compiles its programs")
    page.find("#box").send_keys("Hello?", Keys.ENTER)
    assert not page.find("#send").is_enabled() and page.texts("#turns li") == []
    server.ready = True
    page.until(lambda: page.find("#send").is_enabled())
    assert not page.find("#banner").is_displayed() and page.find("#server").text == "ready"


def test_large_images_are_downscaled_unless_that_is_switched_off_and_other_files_are_refused(page, server, tmp_path):
    large, text = picture(tmp_path / "large.png", "red", (3024, 500)), tmp_path / "notes.txt"
    text.write_text("no image")
    (tmp_path / "broken.png").write_bytes(b"no image either")
    page.choose(large, text, tmp_path / "broken.png")
    page.shows("#refused", "broken.png: this browser cannot read it", "notes.txt is neither an image nor a video")
    page.click("#open-settings")
    page.click("[name=downscale]")
    page.find("[name=temperature]").send_keys("0")
    page.find("[name=system]").send_keys("Be brief.", Keys.ESCAPE)
    page.choose(large)
    page.until(lambda: tiles(page, "#draft") == ["image 1", "image 2"])
    server.refuse(500, "Not today.")
    page.ask("How large?")
    page.shows(".error", "Not today.")
    (request,) = server.requests
    system, question = request["messages"]
    assert [image_of(part).size for part in question["content"][:2]] == [(1512, 250), (3024, 500)]
    assert request["temperature"] == 0 and "top_p" not in request and system == {"role": "system", "content": "Be brief."}


def test_a_question_is_edited_with_its_images_and_a_removed_image_is_gone(page, server, tmp_path):
    page.choose(*(picture(tmp_path / f"{color}.png", color) for color in ("blue", "green", "red")))
    page.until(lambda: len(tiles(page, "#draft")) == 3)
    first = server.stream()
    page.ask("What?")
    first.say("Colours.")
    first.end()
    page.shows(".foot", "first token")
    page.click("[aria-label='Edit this question']")
    page.click("[aria-label='Remove image 2']")
    assert tiles(page, "#draft") == ["image 1", "image 2"]
    second = server.stream()
    page.ask(" Please!")
    second.say("Two colours.")
    second.end()
    page.until(lambda: page.texts(".body") == ["Two colours."])
    (question,) = server.requests[1]["messages"]
    assert question["content"][-1]["text"] == "What? Please!"
    assert [image_of(part).getpixel((0, 0)) for part in question["content"][:2]] == [(0, 0, 255), (255, 0, 0)]
    page.click("#turns .tile")
    page.find("#viewer").send_keys(Keys.ARROW_RIGHT)
    page.shows("#caption", "image 2", "red.png", "40 \N{MULTIPLICATION SIGN} 30")


def test_conversations_are_listed_renamed_and_deleted_and_answers_go_on_unseen(page, server):
    first = server.stream()
    page.ask("The first question")
    first.say("One, ")
    page.shows(".body", "One,")
    page.click("#new")
    second = server.stream()
    page.ask("The second question")
    second.say("Another.")
    second.end()
    page.shows(".foot", "first token")
    first.say("two.")
    first.end()
    page.until(lambda: sorted(page.texts("#chats a")) == ["The first question", "The second question"])
    page.click("#chats a:not([aria-current])")
    page.until(lambda: page.texts(".body") == ["One, two."])
    page.click("#chats .current a")
    page.click("#chats .current [aria-label^=Rename]")
    page.find("#ask-input").clear()
    page.find("#ask-input").send_keys("<i>Numbers</i>", Keys.ENTER)
    page.shows("#title", "<i>Numbers</i>")
    page.browser.refresh()
    page.shows("#chats a", "<i>Numbers</i>")
    page.click("#chats .current a")
    page.click("#chats .current [aria-label^=Delete]")
    page.click("#ask-do")
    page.until(lambda: page.texts("#chats a") == ["The second question"])
    page.browser.refresh()
    page.until(lambda: page.texts("#chats a") == ["The second question"])


def test_a_browser_without_room_says_so_and_goes_on(page, server):
    page.browser.execute_script(_NO_ROOM)
    answer = server.stream()
    page.ask("Is there room?")
    answer.say("No.")
    answer.end()
    page.shows("#banner", "no room")
    page.shows(".foot", "first token")
    assert page.texts(".body") == ["No."]
    page.browser.refresh()
    page.until(lambda: page.find("#server").text == "ready")
    assert page.texts("#chats a") == page.texts("#turns li") == [], "nothing is half-written"


def test_a_folder_is_asked_about_and_nothing_is_cut_off_on_a_phone(page, server, tmp_path):
    page.devtools("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    try:
        (tmp_path / "notes.txt").write_text("of another kind")
        names = [picture(tmp_path / f"frame_{number}.png", "red").name for number in range(30)]
        page.find("#folder-files").send_keys(str(tmp_path))
        page.until(lambda: len(tiles(page, "#draft")) == 30)
        shown = [tile.get_attribute("title") for tile in page.browser.find_elements(By.CSS_SELECTOR, "#draft .tile")]
        assert shown == names and not page.texts("#refused"), "10 comes after 9"
        answer = server.stream()
        page.ask("What is to be seen in all of these? " * 5)
        answer.say("A_very_long_word_without_any_space" * 10 + "\n```\n" + "code " * 40 + "\n```\n" + "words " * 60)
        answer.end(prompt=1000, cached=10, completion=100)
        page.shows(".foot", "first token")
        assert page.browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
        assert page.browser.execute_script(_TOO_WIDE) == []
        assert not page.find("#side").is_displayed()
        page.click("#drawer")
        page.until(lambda: page.find("#chats a").is_displayed())
        page.find("#chats a").send_keys(Keys.ESCAPE)
        page.until(lambda: not page.find("#side").is_displayed())
        page.click(".more")
        assert len(tiles(page, "#turns")) == 30
    finally:
        page.devtools("Emulation.clearDeviceMetricsOverride")
