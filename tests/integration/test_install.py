# SPDX-License-Identifier: BSD-3-Clause
"""Kernelspecs for environments: one build serves several of its minor version, and says so of others."""
import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PYTHON, give_ports
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from kernels import PXKERNEL, TIMEOUT

pytestmark = pytest.mark.usefixtures("no_leftovers")
VERSION = "python%d.%d" % sys.version_info[:2]


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """Two, each with a module of its own."""
    made = {}
    for name in ("one", "two"):
        where = made[name] = tmp_path_factory.mktemp("environments") / name
        subprocess.run([PYTHON, "-m", "venv", "--without-pip", "--system-site-packages", str(where)], check=True)
        (where / "lib" / VERSION / "site-packages" / "which_one.py").write_text(f"name = {name!r}\n")
    return made


def spec_of(prefix, name="phalanx"):
    return json.loads((Path(prefix) / "share/jupyter/kernels" / name / "kernel.json").read_text())


def ask(prefix, name, env, directory, code):
    """The value of an expression in the kernel of that name, started as Jupyter does."""
    specs = KernelSpecManager(kernel_dirs=[str(prefix / "share/jupyter/kernels")])
    manager = KernelManager(kernel_name=name, kernel_spec_manager=specs,
                            connection_file=str(directory / f"{name}.json"))
    give_ports(manager)
    manager.start_kernel(env=env)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT)
        client.execute("", user_expressions={"value": code})
        value = client.get_shell_msg(timeout=TIMEOUT)["content"]["user_expressions"]["value"]
        return value["data"]["text/plain"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_one_build_serves_two_environments(run, env, environments, tmp_path):
    for name, where in environments.items():
        python = os.path.relpath(where / "bin/python", tmp_path)  # what people type
        run("pxkernel", "install", "--prefix", tmp_path, "--name", name, "--python", python, cwd=tmp_path)
    for name, where in environments.items():
        code = "__import__('which_one').name, __import__('sys').prefix, __import__('sys').executable"
        found = ast.literal_eval(ask(tmp_path, name, env, tmp_path, code))
        assert found == (name, str(where), str(where / "bin/python"))


def test_sys_prefix_belongs_to_the_active_environment(run, env, environments, tmp_path):
    where = environments["one"]
    env["VIRTUAL_ENV"] = str(where)
    run("pxkernel", "install", "--sys-prefix")
    assert spec_of(where)["argv"] == [str(PXKERNEL.resolve()), "--python", str(where / "bin/python"), "-f",
                                      "{connection_file}"]
    assert spec_of(where)["metadata"]["supported_encryption"] == ["curve"]
    assert spec_of(where)["kernel_protocol_version"] == "5.5"
    del env["VIRTUAL_ENV"]  # a Jupyter from elsewhere starts it
    assert ask(where, "phalanx", env, tmp_path, "__import__('which_one').name") == "'one'"


def test_a_program_in_an_environment_belongs_to_it(env, environments, tmp_path):
    program = shutil.copy(PXKERNEL, environments["two"] / "bin")
    subprocess.run([program, "install", "--prefix", tmp_path], env=env, check=True)
    for active in ("", str(environments["one"])):
        env["VIRTUAL_ENV"] = active
        assert ask(tmp_path, "phalanx", env, tmp_path, "__import__('which_one').name") == "'two'"


def test_another_minor_version_is_refused_by_install_and_by_start(run, tmp_path):
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 3 9\n")
    other.chmod(0o755)
    (tmp_path / "kernel.json").write_text("{}")
    for args in (["install", "--prefix", tmp_path / "p"], ["-f", tmp_path / "kernel.json"]):
        done = run("pxkernel", *args, "--python", other, check=False)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert f"{other}: is Python 3.9, but this program was built for 3." in done.stderr
    assert not (tmp_path / "p").exists()
    done = run("pxkernel", "install", "--prefix", tmp_path / "p", "--python", tmp_path / "none", check=False)
    assert done.returncode == 1 and "no Python to run there" in done.stderr
    assert not (tmp_path / "p").exists()


def test_a_profile_is_named(run, env, ipython_dir, tmp_path):
    startup = ipython_dir / "profile_lab" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("from_lab = 7\n")
    run("pxkernel", "install", "--prefix", tmp_path)
    path = tmp_path / "share/jupyter/kernels/phalanx/kernel.json"
    spec = json.loads(path.read_text())
    spec["argv"][1:1] = ["--profile", "lab"]
    path.write_text(json.dumps(spec))
    assert ask(tmp_path, "phalanx", env, tmp_path, "from_lab") == "7"
    (tmp_path / "kernel.json").write_text("{}")
    done = run("pxkernel", "--profile", "nowhere", "-f", tmp_path / "kernel.json", check=False)
    assert done.returncode == 1 and "no such profile" in done.stderr
