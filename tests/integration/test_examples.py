# SPDX-License-Identifier: BSD-3-Clause
"""An installation in a directory of its own runs the example notebook as examples/run does."""
import json
import re
import subprocess

import pytest

from conftest import BIN, PYTHON, ROOT

NOTEBOOK = ROOT / "examples" / "clustering.ipynb"


@pytest.fixture
def prefix(tmp_path, env):
    """What `cmake --install` puts there, and an environment that knows nothing of the build."""
    prefix = tmp_path / "prefix"
    subprocess.run(["cmake", "--install", BIN.parent, "--prefix", prefix],
                   check=True, stdout=subprocess.DEVNULL, timeout=60)
    env["PATH"] = env["PATH"].replace(str(BIN), str(prefix / "bin"))
    env["JUPYTER_PATH"] = str(prefix / "share" / "jupyter")
    env["JUPYTER_RUNTIME_DIR"] = str(tmp_path / "runtime")
    del env["PYTHONPATH"]
    env.pop("MPLBACKEND", None)  # the user's choice would outweigh inline figures
    return prefix


def execute(notebook, executed, env):
    return subprocess.run([PYTHON, ROOT / "examples" / "execute.py", notebook, executed],
                          env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=240)


def texts(cell):
    """All text of a cell's outputs, without colours."""
    parts = []
    for output in cell["outputs"]:
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        parts.append("".join(text))
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(parts))


def test_the_notebook_runs_from_an_installation(prefix, env, tmp_path):
    subprocess.run([prefix / "bin" / "pxcluster", "start", "-n", "4", "--daemonize"],
                   env=env, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    executed = tmp_path / "executed.ipynb"
    try:
        done = execute(NOTEBOOK, executed, env)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        subprocess.run([prefix / "bin" / "pxcluster", "stop", "--all"],
                       env=env, check=True, capture_output=True, timeout=60)
    cells = [c for c in json.loads(executed.read_text())["cells"] if c["cell_type"] == "code"]
    (connect, apply, eigenvalues, names, parts, whoami, multiply, lines, cell, loop, balanced,
     awaited, executor, failing, more, _, estimate, plot, picture) = cells
    assert "from IPython.parallel import Client" in "".join(connect["source"])
    assert texts(names) == "[42, 42, 42, 42]"
    assert texts(parts) == str([n * n for n in range(16)])
    assert (texts(whoami), texts(multiply)) == ("4", "True")
    assert (texts(awaited), texts(executor)) == ("140", "[1, 2, 4, 8, 16]")
    assert texts(failing).count("ZeroDivisionError: division by zero") == 4
    assert texts(connect) == "[0, 1, 2, 3]"
    assert texts(apply).count("array(") == texts(eigenvalues).count("array(") == 4
    assert re.findall(r"Out\[(\d):3\]: array\(", texts(lines)) == ["0", "1", "2", "3"]
    assert sorted(re.findall(r"\[stdout:(\d)\]\s+engine \d+ holds", texts(cell))) == list("0123")
    assert re.findall(r"Out\[(\d):5\]: (?:np\.)?(?:True|False)", texts(loop)) == ["0", "1"]
    assert texts(balanced) == "True"
    assert texts(more).endswith("8")
    assert "Wall time" in texts(estimate)
    assert abs(float(re.findall(r"\d\.\d+", texts(estimate))[-1]) - 3.14159) < 0.01
    for figure in (plot, picture):
        assert any("image/png" in output.get("data", {}) for output in figure["outputs"])
    assert "[output:0]" in texts(picture)
    # Each cell was shown when it ran, in order.
    shown = re.findall(r"^In \[(\d+)\]:", done.stdout, re.MULTILINE)
    assert shown == [str(n + 1) for n in range(len(cells))]


def test_a_failing_cell_ends_the_run_and_is_shown(prefix, env, tmp_path):
    notebook = json.loads(NOTEBOOK.read_text())
    bad = dict(notebook["cells"][2], source="print('before')\n1 / 0")
    notebook["cells"] = [bad, dict(bad, id="later", source="print('after')")]
    source = tmp_path / "bad.ipynb"
    source.write_text(json.dumps(notebook))
    done = execute(source, tmp_path / "executed.ipynb", env)
    assert done.returncode == 1
    assert "before\n" in done.stdout and "ZeroDivisionError" in done.stdout
    assert "print('after')" not in done.stdout
