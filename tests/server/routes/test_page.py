"""The page in a real Chromium, in front of the gateway and the real engine."""

import base64
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from server.app import create_app
from tests.system import need_program

PATIENCE_SECONDS = 120
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DROP = """
const [target, pictures] = arguments;
const transfer = new DataTransfer();
for (const [name, data] of pictures) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
}
for (const kind of ["dragenter", "dragover", "drop"]) {
  target.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}
"""
# Relative luminance and contrast as WCAG 2 defines them.
CONTRASTS = """
const light = (css) => {
  const [r, g, b] = css.match(/[0-9.]+/g).map(Number).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
const back = light(getComputedStyle(document.body).backgroundColor);
return ["h1", "#model", "#use", "#problem", "#answer"].map((name) => {
  const style = getComputedStyle(document.querySelector(name));
  const own = style.backgroundColor === "rgba(0, 0, 0, 0)" ? back : light(style.backgroundColor);
  return ratio(light(style.color), own);
});
"""


class Page:
    """What a person sees and does."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def find(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        WebDriverWait(self.browser, PATIENCE_SECONDS).until(lambda _: condition())

    def text(self, name: str) -> str:
        return self.find(name).text

    def drop(self, pictures: list[tuple[str, bytes]]) -> None:
        encoded = [[name, base64.b64encode(content).decode()] for name, content in pictures]
        self.browser.execute_script(DROP, self.find("drop"), encoded)

    def complaints(self) -> list[str]:
        """The errors in the browser's console: refused resources, failures of scripts."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = need_program("chromium", package="chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(need_program("chromedriver", package="chromium-driver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        yield browser


@pytest.fixture
def page(browser: webdriver.Chrome, served: Any) -> Page:
    browser.get(served.url)
    page = Page(browser)
    page.wait_for(lambda: "context length" in page.text("model"))
    return page


def pictures(count: int) -> list[tuple[str, bytes]]:
    rng = random.Random(0)
    found = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (rng.randrange(256), rng.randrange(256), rng.randrange(256))).save(buffer, "PNG")
        found.append((f"{number}.png", buffer.getvalue()))
    return found


def test_drop_twenty_images_read_the_bar_ask_and_read_the_answer(page: Page, served: Any) -> None:
    page.drop([*pictures(20), ("broken.png", b"not an image")])

    page.wait_for(lambda: "20 of 21 images uploaded, 1 cannot be used." in page.text("uploads"))
    page.wait_for(lambda: "for 20 images" in page.text("use"))
    assert "not a readable image" in page.text("images")
    page.find("question").send_keys("What is there?")
    page.wait_for(lambda: page.text("use") == page.find("bar").get_attribute("aria-label"))
    before = page.text("use")
    assert "of the context length" in before
    assert page.find("image-share").size["width"] > 0

    page.find("max-tokens").clear()
    page.find("max-tokens").send_keys("8")
    page.find("question").send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait_for(lambda: page.find("timing").is_displayed())

    assert page.find("answer").get_attribute("aria-busy") == "false"
    assert page.text("answer")
    assert not page.text("problem")
    assert "server: check" in page.text("timing")
    counted = httpx.get(f"{served.url}/metrics", trust_env=False).text
    assert 'laid_count_difference_tokens_bucket{le="0.0"' in counted
    # The broken image's refusal is the only thing the console has to tell.
    complaints = page.complaints()
    assert ["status of 400" in complaint for complaint in complaints] == [True], complaints


def test_what_does_not_fit_is_explained_before_it_is_sent(page: Page) -> None:
    page.drop(pictures(3))
    page.wait_for(lambda: "for 3 images" in page.text("use"))
    page.browser.execute_script(
        "arguments[0].value = 'word '.repeat(3000); arguments[0].dispatchEvent(new Event('input'))",
        page.find("question"),
    )

    page.wait_for(lambda: "maximum context length is 2048 tokens" in page.text("problem"))

    assert not page.find("ask").is_enabled()
    page.find("clear").click()
    page.find("question").clear()
    page.find("question").send_keys("Short.")
    page.wait_for(lambda: not page.text("problem"))
    assert page.find("ask").is_enabled()
    assert "for 0 images" in page.text("use")


def test_everything_can_be_reached_and_named_without_a_mouse(page: Page) -> None:
    page.drop(pictures(2))
    page.wait_for(lambda: "for 2 images" in page.text("use"))
    reached = []
    for _ in range(12):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        element = page.browser.switch_to.active_element
        if element.tag_name in ("input", "textarea", "button", "summary"):
            assert element.accessible_name, element.get_attribute("outerHTML")
            reached.append(element.accessible_name)
    assert "Choose images" in reached
    assert "Remove image 2, 1.png" in reached
    assert "Your question about the images" in reached
    assert "Ask" in reached

    page.browser.find_elements(By.CSS_SELECTOR, "#images button")[1].send_keys(Keys.ENTER)
    page.wait_for(lambda: "for 1 images" in page.text("use"))
    assert page.browser.switch_to.active_element.accessible_name == "Remove image 1, 0.png"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(page: Page, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    assert min(page.browser.execute_script(CONTRASTS)) >= 4.5


async def test_the_page_can_be_switched_off(make_settings: Callable[..., Any]) -> None:
    for is_on, status in ((True, 200), (False, 404)):
        app = create_app(make_settings(page=is_on))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            response = await client.get("/")
            assert response.status_code == status
            assert ("default-src 'none'" in response.headers.get("content-security-policy", "")) == is_on
