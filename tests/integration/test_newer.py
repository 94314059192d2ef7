# SPDX-License-Identifier: BSD-3-Clause
"""Tests of ours that mix or compare with the reference, once more with ipyparallel 9 or later
(tests/newer) in its place: as the client in the tests' process, and as controller and engine."""
import subprocess
from pathlib import Path

import pytest
from conftest import PYTHON, with_newer

HERE = Path(__file__).parent
TIMEOUT_S = 300

pytestmark = [pytest.mark.stock, pytest.mark.timeout(TIMEOUT_S + 30)]


@pytest.mark.parametrize("file, which", [
    ("test_mixed.py", "not installed-controller"),  # it concerns us with the installed client only
    ("test_task_replies.py", ""), ("test_engine_frames.py", ""), ("test_queries.py", ""),
    ("test_interface.py", ""),
    # Our magics, in an ipykernel that could load theirs.
    ("test_magics.py", "ipykernel and (values or streams or errors or noblock or why or activate)"),
])
def test_with_the_newer(file, which, env, tmp_path):
    done = subprocess.run(
        # The first that fails ends it, lest the time is up before its traceback is printed.
        [PYTHON, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "--color=no", "-k", which,
         "-o", f"timeout={TIMEOUT_S // 2}", f"--basetemp={tmp_path / 'newer'}", HERE / file],
        env=with_newer(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", timeout=TIMEOUT_S)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-20000:]
