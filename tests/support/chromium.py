"""Chromium, driven by Selenium: Debian's packages `chromium` and `chromium-driver`, or others on the PATH."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.remote.webelement import WebElement

from support.waiting import wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 1280, 800
# What finds barriers in pages. Not our own: its licence is beside it.
AXE = Path(__file__).parents[1] / "browser" / "axe" / "axe.min.js"


def why_missing() -> str | None:
    """Return why no browser can be started here, or None."""
    found = _program()
    if found is None:
        return "Chromium is not installed: ./run chromium"
    return None if shutil.which("chromedriver") else "Chromium's driver is not installed: ./run chromium"


def _program() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """A headless browser. ``hosts`` are names that it resolves to addresses of its own choice."""

    def __init__(self, hosts: Mapping[str, str] | None = None) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = _program() or ""
        # Its own folder: the browsers of several processes, and a person's, do not share anything.
        self._profile = tempfile.TemporaryDirectory(prefix="flask-backend-chromium-", ignore_cleanup_errors=True)
        rules = [f"MAP {name} {address}" for name, address in (hosts or {}).items()]
        # Its own services, such as updates, would be requests to other hosts.
        rules += ["MAP * ~NOTFOUND", "EXCLUDE 127.0.0.1", "EXCLUDE localhost"]
        for argument in (
            "--headless=new",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium refuses its sandbox to root
            "--disable-dev-shm-usage",  # small in containers
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--user-data-dir={self._profile.name}",
            f"--host-resolver-rules={', '.join(rules)}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # The path of the driver: without one Selenium would try to download it.
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options, service)
        self._hastening: str | None = None
        self.driver.set_page_load_timeout(30)
        self.driver.set_script_timeout(30)
        self.resize()

    def quit(self) -> None:
        self.driver.quit()
        self._profile.cleanup()

    def reset(self) -> None:
        """Forget what earlier pages left: cookies, storage, the emulation of media and sizes, further tabs."""
        first, *others = self.driver.window_handles
        for handle in others:
            self.driver.switch_to.window(handle)
            self.driver.close()
        self.driver.switch_to.window(first)
        self.driver.get("about:blank")
        if self._hastening is not None:
            self.devtools("Page.removeScriptToEvaluateOnNewDocument", identifier=self._hastening)
            self._hastening = None
        self.devtools("Network.clearBrowserCookies")
        self.devtools("Storage.clearDataForOrigin", origin="*", storageTypes="all")
        self.devtools("Emulation.setScriptExecutionDisabled", value=False)
        self.devtools("Emulation.setEmulatedMedia", media="", features=[])
        self.resize()
        self.driver.get_log("browser")

    # -- pages ---------------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        self.driver.get(url)

    @property
    def url(self) -> str:
        return self.driver.current_url

    @property
    def text(self) -> str:
        """The visible text of the page."""
        return self.run("return document.body.innerText")

    def find(self, selector: str, text: str | None = None) -> WebElement:
        """Return the first element of a CSS selector, of those that have this text."""
        found = self.find_all(selector, text)
        assert found, f"no {selector!r} with {text!r} in:\n{self.text}"
        return found[0]

    def find_all(self, selector: str, text: str | None = None) -> list[WebElement]:
        # In one step: the page may replace an element between two.
        found = (
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter(each => arguments[1] === null || each.innerText.includes(arguments[1]))"
        )
        return self.run(found, selector, text)

    def click(self, selector: str, text: str | None = None) -> None:
        self.find(selector, text).click()

    def follow(self, selector: str, text: str | None = None) -> None:
        """Click a link or a button, and wait for the page that it leads to."""
        self.run("document.isLeft = true")
        self.click(selector, text)
        arrived = "return !document.isLeft && document.readyState === 'complete'"
        self.wait(lambda: self.run(arrived), "another page")

    def press(self, *keys: str) -> None:
        """Press keys, without a target of their own: the page gets them, or the element that has the focus."""
        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a condition on the page holds. An element that is missing, or just replaced, counts as not yet."""

        def check() -> Any:
            with suppress(StaleElementReferenceException, AssertionError):
                return condition()

        try:
            return wait_until(check, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page {self.url}:\n{self.text[:3000]}") from None

    def wait_for_text(self, text: str, selector: str = "body") -> None:
        self.wait(lambda: any(text in each.text for each in self.find_all(selector)), f"{text!r} in {selector}")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page, and return what it returns; a promise is awaited."""
        return self.driver.execute_script(script, *arguments)

    def problems(self) -> list[str]:
        """Return the errors that the browser has logged since the last call: scripts, policies, failed requests."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def violations(self) -> list[str]:
        """Return what axe-core finds wrong with the page: the rule, and the element. Under any policy of the page."""
        if not self.run("return typeof axe === 'object'"):
            self.run(AXE.read_text())
        found = self.run("return axe.run({resultTypes: ['violations']}).then(result => result.violations)")
        return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]

    def hasten(self, factor: float = 10) -> None:
        """Let the timers of the pages opened from now on run faster, and count in ``turns`` how often one has ended."""
        if self._hastening is None:
            source = (
                "window.turns = 0; const after = window.setTimeout; window.setTimeout = (act, ms, ...rest) => "
                f"after(() => {{ window.turns += 1; act(); }}, ms / {factor}, ...rest);"
            )
            found = self.devtools("Page.addScriptToEvaluateOnNewDocument", source=source)
            self._hastening = found["identifier"]

    # -- what is emulated ----------------------------------------------------------------------------------------

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)

    def resize(self, width: int = WIDTH, height: int = HEIGHT, scale: float = 1, *, is_mobile: bool = False) -> None:
        """Set the size of the page in CSS pixels; ``scale`` is the number of dots for one."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_mobile
        )

    def prefer(self, scheme: str = "", *, reduced_motion: bool = False) -> None:
        """Prefer a colour scheme, ``light`` or ``dark``, as a setting of the system."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        features += [{"name": "prefers-reduced-motion", "value": "reduce"}] if reduced_motion else []
        self.devtools("Emulation.setEmulatedMedia", features=features)

    @contextmanager
    def without_scripts(self):
        self.devtools("Emulation.setScriptExecutionDisabled", value=True)
        try:
            yield
        finally:
            self.devtools("Emulation.setScriptExecutionDisabled", value=False)

    def screenshot(self, path: Path) -> None:
        taken = self.devtools("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(taken["data"]))

    def print(self, path: Path) -> None:
        """Write the page as a PDF of A4 pages."""
        printed = self.devtools("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        path.write_bytes(base64.b64decode(printed["data"]))
