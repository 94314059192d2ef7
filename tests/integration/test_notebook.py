# SPDX-License-Identifier: BSD-3-Clause
"""The classic notebook in a browser without a screen, used as a person uses it: with keys and the
mouse. PX_SCREENSHOTS names a directory for pictures of it."""
import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import BIN, PYTHON, wait_for
from said import by_engine

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402


def version(module):
    return tuple(map(int, pytest.importorskip(module).__version__.split(".")[:2]))


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
CLASSIC = version("notebook") < (7, 0)
# Its server then writes to one websocket from two threads, whatever the kernel.
TORN = version("notebook") < (6, 5) and version("jupyter_client") >= (8, 0)
pytestmark = [pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium"),
              pytest.mark.skipif(not CLASSIC, reason="notebook 7 is not the classic one"),
              pytest.mark.skipif(TORN, reason="this notebook loses messages with jupyter_client 8"),
              pytest.mark.skipif("PX_ASAN_OPTIONS" in os.environ, reason="chromedriver takes no preload"),
              pytest.mark.usefixtures("no_leftovers")]
PATIENCE = 60


@pytest.fixture
def server(env, tmp_path):
    """The address of a notebook server that knows the kernel."""
    env.update(JUPYTER_DATA_DIR=str(tmp_path / "data"), JUPYTER_CONFIG_DIR=str(tmp_path / "config"),
               JUPYTER_RUNTIME_DIR=str(tmp_path / "run"))
    subprocess.run([BIN / "pxkernel", "install", "--user"], env=env, check=True,
                   stdout=subprocess.DEVNULL)
    (tmp_path / "work").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(tmp_path / "notebook.log", "w")
    process = subprocess.Popen(
        [PYTHON, "-m", "notebook", "--no-browser", "--allow-root", f"--port={port}",
         "--port-retries=0", "--NotebookApp.token=t", f"--notebook-dir={tmp_path / 'work'}"],
        env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def specs():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/kernelspecs?token=t") as page:
                return json.load(page)["kernelspecs"]
        except OSError:
            return None

    assert "phalanx" in wait_for(specs, PATIENCE)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(PATIENCE)
    log.close()


class Notebook:
    """A page with a notebook."""

    def __init__(self, driver):
        self.driver = driver

    def js(self, script):
        return self.driver.execute_script(script)

    def find(self, selector, root=None):
        """The first such element that is shown."""
        def shown():
            found = (root or self.driver).find_elements(By.CSS_SELECTOR, selector)
            return next((e for e in found if e.is_displayed()), None)
        return wait_for(shown, PATIENCE, selector)

    def open(self, address):
        """The file list, New, Python (Phalanx)."""
        self.driver.get(f"{address}/tree?token=t")
        self.find("#new-dropdown-button").click()
        self.find("#kernel-phalanx a").click()
        wait_for(lambda: len(self.driver.window_handles) == 2, PATIENCE, "a notebook's tab")
        self.driver.switch_to.window(self.driver.window_handles[-1])
        wait_for(lambda: self.js(
            "return window.Jupyter && Jupyter.notebook && Jupyter.notebook._fully_loaded &&"
            " Jupyter.notebook.kernel && Jupyter.notebook.kernel.is_connected()"), PATIENCE,
            "a kernel")

    def type(self, *keys):
        """Into the cell that is being edited."""
        self.find(".cell.selected .CodeMirror textarea, .cell.selected .CodeMirror")
        self.driver.switch_to.active_element.send_keys(*keys)

    def edit(self):
        self.find(".cell.selected .CodeMirror").click()

    def run(self, code):
        """Types a cell, or pastes one of several lines, and runs it with Shift-Enter; returns its
        element."""
        self.edit()
        if "\n" in code:
            self.driver.execute_script(
                "Jupyter.notebook.get_selected_cell().set_text(arguments[0])", code)
        else:
            self.type(code)
        cell = self.find(".cell.selected")
        self.type(Keys.SHIFT, Keys.ENTER)
        return cell

    def output(self, cell, selector=".output_area pre"):
        return self.find(selector, cell)

    def act(self, action):
        """A button of the tool bar."""
        self.find(f"button[data-jupyter-action='jupyter-notebook:{action}']").click()

    def wait_idle(self):
        wait_for(lambda: self.js("return Jupyter.notebook.kernel_busy === false"), PATIENCE, "idle")

    def picture(self, name):
        if "PX_SCREENSHOTS" in os.environ:
            self.driver.save_screenshot(str(Path(os.environ["PX_SCREENSHOTS"], f"{name}.png")))


@pytest.fixture
def notebook(server, tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1000,1100", f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(service=Service(DRIVER), options=options)
    try:
        page = Notebook(driver)
        page.open(server)
        yield page
        page.picture("last")
    finally:
        driver.quit()


@pytest.mark.timeout(300)
def test_a_person_at_a_notebook(notebook):
    cell = notebook.run("6 * 7")
    assert notebook.output(cell).text == "42"

    cell = notebook.run("import matplotlib.pyplot as plt; plt.figure(figsize=(4, 2));"
                        " plt.plot([1, 3, 2, 4]);")
    assert notebook.output(cell, ".output_png img").size["width"] > 100
    notebook.picture("plot")

    # completion: one match is filled in, several are offered
    notebook.edit()
    notebook.type("import collec", Keys.TAB)
    notebook.find(".cell.selected")
    wait_for(lambda: "import collections" in notebook.js(
        "return Jupyter.notebook.get_selected_cell().get_text()") or
        notebook.driver.find_elements(By.CSS_SELECTOR, ".completions option"), PATIENCE,
        "completion")
    notebook.picture("completion")
    notebook.type(Keys.ENTER)
    wait_for(lambda: not notebook.driver.find_elements(By.CSS_SELECTOR, ".completions"), PATIENCE,
             "the choice")
    assert notebook.js("return Jupyter.notebook.get_selected_cell().get_text()").startswith(
        "import collections")
    notebook.type(Keys.SHIFT, Keys.ENTER)

    # a loop is interrupted with the tool bar's button
    cell = notebook.run("x = 'before'; print('a loop'); exec('while True: pass')")
    assert notebook.output(cell).text == "a loop"
    assert notebook.js("return Jupyter.notebook.kernel_busy")
    notebook.act("interrupt-kernel")
    assert "KeyboardInterrupt" in notebook.output(cell, ".output_error pre").text

    # a slider moved with the keyboard calls the function again
    cell = notebook.run("from ipywidgets import interact; interact(lambda n: n * n, n=(0, 10));")
    handle = notebook.find(".ui-slider-handle, .noUi-handle", cell)  # of ipywidgets 7, 8
    wait_for(lambda: "25" in cell.text, PATIENCE, "the square of 5")
    handle.click()
    handle.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    wait_for(lambda: "49" in cell.text, PATIENCE, "the square of 7")
    notebook.picture("slider")

    # a restart forgets the names
    notebook.act("confirm-restart-kernel")
    notebook.find(".modal-dialog button.btn-danger").click()
    wait_for(lambda: not notebook.driver.find_elements(By.CSS_SELECTOR, ".modal-backdrop"),
             PATIENCE, "the dialog's end")
    notebook.wait_idle()
    notebook.js("Jupyter.notebook.select(Jupyter.notebook.ncells() - 1)")  # not the slider's
    cell = notebook.run("x")
    assert "NameError" in notebook.output(cell, ".output_error pre").text
    cell = notebook.run("print('alive')")
    assert notebook.output(cell).text == "alive"


def said(cell):
    """What each engine has said so far, as the page shows it."""
    lines = [line.rstrip() for line in cell.text.splitlines()]  # a wiped line leaves spaces
    text = "".join(line + "\n" for line in lines if not line.startswith("%px:"))
    start = text.find("[stdout:")
    return by_engine(text[start:].replace("]\n", "] \n")) if start >= 0 else {}


def everyone(text):
    return dict.fromkeys(range(4), text)


@pytest.mark.timeout(300)
def test_px_at_a_notebook(notebook, tmp_path):
    cell = notebook.run("%pxcluster start -n 4")
    assert notebook.output(cell).text == (
        "Starting a cluster of 4 engines, which ends with this session.")
    notebook.wait_idle()

    watched = notebook.run("%pxcluster watch")
    wait_for(lambda: "4 engines, 0 at work" in watched.text, PATIENCE, "what the engines do")

    # output is there before the cell's end, and a progress line that goes
    gate = tmp_path / "gate"
    cell = notebook.run("%%px\nimport os, time\nprint('before', flush=True)\n"
                        f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)\n"
                        "print('after')")
    wait_for(lambda: said(cell) == everyone("before\n"), PATIENCE, "what all engines print")
    wait_for(lambda: "%px: 0 of 4 engines done" in cell.text, PATIENCE, "progress")
    wait_for(lambda: "4 engines, 4 at work" in watched.text, PATIENCE, "engines at work")
    assert notebook.js("return Jupyter.notebook.kernel_busy")
    notebook.picture("px-live")
    gate.touch()
    wait_for(lambda: said(cell) == everyone("before\nafter\n"), PATIENCE, "the end")
    notebook.wait_idle()
    assert "engines done" not in cell.text
    assert not cell.find_elements(By.CSS_SELECTOR, ".output_stderr")

    # one value, one traceback of many engines
    cell = notebook.run("%px 6 * 7")
    wait_for(lambda: "]: 42" in cell.text, PATIENCE, "the value")
    assert cell.text.count("42") == 1 and "Out[0-3" in cell.text
    cell = notebook.run("%px 1/0")
    error = notebook.output(cell, ".output_error pre").text
    assert error.startswith("[0-3:execute]:") and error.count("Traceback") == 1
    notebook.picture("px-error")

    # the tool bar's button interrupts the engines
    cell = notebook.run("%px print('asleep', flush=True); time.sleep(100)")
    wait_for(lambda: said(cell) == everyone("asleep\n"), PATIENCE, "the engines at work")
    notebook.act("interrupt-kernel")
    assert "KeyboardInterrupt" in notebook.output(cell, ".output_error pre").text
    assert "%px: sent SIGINT to engines 0-3" in cell.text
    notebook.picture("px-interrupt")

    # a figure of each engine, and one that is the same on all
    plot = ("%%px\n%matplotlib inline\nimport matplotlib.pyplot as plt, os\n"
            "plt.figure(figsize=(3, 1)); plt.title({}); plt.plot([1, 5, 2]); plt.show()")
    for what, count in (("os.getpid()", 4), ("5", 1)):
        cell = notebook.run(plot.format(what))
        wait_for(lambda: len(cell.find_elements(By.CSS_SELECTOR, ".output_png img")) == count,
                 PATIENCE, f"{count} figures")
        notebook.wait_idle()
        assert len(cell.find_elements(By.CSS_SELECTOR, ".output_png img")) == count
        assert "engines done" not in cell.text
        notebook.picture(f"px-figures-{count}")
    # an engine's slider, moved on the page, moves there
    cell = notebook.run("%%px -t 1\nimport ipywidgets\nslider = ipywidgets.IntSlider(5, 0, 10)\nslider")
    handle = notebook.find(".ui-slider-handle, .noUi-handle", cell)
    handle.click()
    handle.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    wait_for(lambda: notebook.find(".widget-readout", cell).text == "7", PATIENCE, "the slider to move")
    assert not cell.find_elements(By.CSS_SELECTOR, ".output_stderr")
    notebook.picture("px-slider")
    cell = notebook.run("%px -t 1 slider.value")
    wait_for(lambda: "]: 7" in cell.text, PATIENCE, "the value there")
    cell = notebook.run("%px -t 1 ipywidgets.interact(lambda n: n * n, n=(0, 10));")
    handle = notebook.find(".ui-slider-handle, .noUi-handle", cell)
    handle.click()
    handle.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    wait_for(lambda: notebook.find(".widget-readout", cell).text == "7", PATIENCE, "the slider to move")
    wait_for(lambda: "49" in cell.text, PATIENCE, "the square of 7, from there")
    assert "25" not in cell.text  # what the cell itself had shown
    notebook.picture("px-interact")
    # what threads write later stands below their cell
    gate.unlink()
    cell = notebook.run("%%px\nimport threading\ndef wait():\n"
                        f"    while not os.path.exists({str(gate)!r}): time.sleep(0.02)\n"
                        "    print('late')\nthreading.Thread(target=wait).start(); print('begun')")
    wait_for(lambda: said(cell) == everyone("begun\n"), PATIENCE, "the cell's own words")
    other = notebook.run("print('between')")
    assert notebook.output(other).text == "between"
    notebook.wait_idle()
    gate.touch()
    wait_for(lambda: said(cell) == everyone("begun\nlate\n"), PATIENCE, "the threads' words")
    notebook.picture("px-late")
    cell = notebook.run("print('alive')")
    assert notebook.output(cell).text == "alive"
