# SPDX-License-Identifier: BSD-3-Clause
"""libphalanx as a C programmer gets it: an installed library, found through pkg-config alone."""
import os
import re
import subprocess

import pytest

from conftest import BIN, ROOT

EXAMPLES = ROOT / "examples"
HEADER = ROOT / "cluster" / "client" / "phalanx.h"
SANITIZE = os.environ.get("PX_SANITIZE")  # a sanitizer whose runtime is preloaded, for pytest alone
UNLOADED = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}


def output(*command, env=UNLOADED):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """An installation that was moved after it was made."""
    first = tmp_path_factory.mktemp("install") / "first"
    output("cmake", "--install", BIN.parent, "--prefix", first)
    moved = first.with_name("moved")
    first.rename(moved)
    return moved


def pkg_config(prefix, *words):
    env = {"PATH": os.environ["PATH"], "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    return output("pkg-config", *words, "phalanx", env=env).split()


def compile_c(prefix, source, program, language="c"):
    flags = pkg_config(prefix, "--cflags", "--libs")
    sanitize = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
    strict = ["-std=c11"] if language == "c" else ["-std=c++11"]
    output("cc" if language == "c" else "c++", "-x", language, *strict, "-Wall", "-Wextra",
           "-pedantic", "-Werror", *sanitize, source, *flags, "-o", program)
    return program


@pytest.fixture
def run_c(prefix, cluster, env, tmp_path):
    """Compiles and runs a program on a cluster of two engines: what it printed."""
    cluster(2)

    def run_c(source, *args):
        program = compile_c(prefix, source, tmp_path / source.stem)
        return output(program, *args, env=env)

    return run_c


def test_pkg_config_follows_the_installation(prefix):
    assert pkg_config(prefix, "--cflags") == [f"-I{prefix}/lib/pkgconfig/../../include"]
    assert "-lphalanx" in pkg_config(prefix, "--libs")
    version = pkg_config(prefix, "--modversion")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version[0])


def test_nothing_but_the_header_is_exported(prefix):
    library = prefix / "lib" / "libphalanx.so"
    symbols = [line.split()[-1] for line in output("nm", "-D", "--defined-only", library).splitlines()]
    declared = set(re.findall(r"^PHALANX_API [^;(]*?\b(phalanx_\w+)\(", HEADER.read_text(), re.M))
    assert len(declared) > 20
    assert set(symbols) == {"PHALANX_0"} | {f"{name}@@PHALANX_0" for name in declared}


def test_the_library_is_versioned_and_free_of_python(prefix):
    dynamic = output("readelf", "-d", prefix / "lib" / "libphalanx.so")
    assert "SONAME" in dynamic and "[libphalanx.so.0]" in dynamic
    assert "python" not in dynamic
    # With ThreadSanitizer there is one, of the libzmq in the build's own directory.
    assert ("RUNPATH" in dynamic or "RPATH" in dynamic) == (SANITIZE == "thread")


@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_header_stands_alone(prefix, tmp_path, language):
    source = tmp_path / "alone.txt"
    source.write_text('#include <phalanx.h>\nint main(void) { return phalanx_version() == 0; }\n')
    try:
        compile_c(prefix, source, tmp_path / "alone", language)
    except FileNotFoundError:
        pytest.skip(f"no compiler for {language}")


def test_pi(run_c):
    text = run_c(EXAMPLES / "pi.c", 100_000)
    engines, tasks, pi = re.fullmatch(r"(\d+) engines, (\d+) tasks: pi is about ([\d.]+)\n",
                                      text).groups()
    assert (engines, tasks) == ("2", "8")
    assert abs(float(pi) - 3.1416) < 0.05


def test_tasks_come_as_they_end(run_c):
    lines = run_c(EXAMPLES / "tasks.c").splitlines()
    ended = [re.match(r"task (\d) on engine (\d): (.*)", line) for line in lines]
    ended = [m.groups() for m in ended if m]
    assert sorted(n for n, _, _ in ended) == list("01234567")
    assert ended[-1][0] == "0"  # the slow one
    said = {n: text for n, _, text in ended}
    assert said["5"] == "ZeroDivisionError: division by zero"
    assert said["7"] == '{"n": 7, "square": 49}'
    assert sum("works" in line for line in lines) == 8
    assert lines[-1] == "8 of 8 tasks have ended"


CALLS = r"""
#include <phalanx.h>
#include <stdio.h>
#include <stdlib.h>

static void call(phalanx_client *client, const char *function, const char *args, const char *kwargs)
{
    struct phalanx_error err;
    struct phalanx_request request = {
        .type = PHALANX_CALL, .function = function, .args = args, .kwargs = kwargs};
    phalanx_result *result = phalanx_submit(client, &request, &err);
    if (!result) {
        printf("refused: %s\n", err.text);
        return;
    }
    struct phalanx_event event;
    while (phalanx_next(result, -1, &event) == PHALANX_OK)
        if (event.type == PHALANX_REPLY && event.task == 0) {
            char *value = phalanx_value(&event, &err);
            printf("%s\n", value ? value : err.text);
            free(value);
        }
    phalanx_result_free(result);
}

int main(void)
{
    phalanx_client *client = phalanx_connect(NULL, NULL);
    if (!client)
        return 1;
    call(client, "math:factorial", "[20]", NULL);
    call(client, "builtins:sorted", "[[3, 1, 2]]", "{\"reverse\": true}");
    call(client, "os:path.basename", "[\"/a/\\u00e9\"]", NULL);
    call(client, "builtins:set", "[[1, 1]]", NULL);
    call(client, "numpy:arange", "[3]", NULL);
    call(client, "builtins:dict", NULL, NULL);
    call(client, "builtins:open", "[\"/nowhere\"]", NULL);
    call(client, "nowhere:f", NULL, NULL);
    call(client, "undefined", NULL, NULL);
    call(client, "builtins:object", NULL, NULL);
    call(client, "builtins:len", "{}", NULL);
    call(client, "builtins:len", "[1", NULL);
    call(client, "builtins:len", "[]", "[]");
    call(client, "", NULL, NULL);
    phalanx_close(client);
    return 0;
}
"""


def test_calls_by_name(run_c, tmp_path):
    source = tmp_path / "calls.c"
    source.write_text(CALLS)
    assert run_c(source).splitlines() == [
        "2432902008176640000",
        "[3, 2, 1]",
        '"\\u00e9"',
        "[1]",
        "[0, 1, 2]",
        "{}",
        "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'",
        "ModuleNotFoundError: No module named 'nowhere'",
        "AttributeError: module '__main__' has no attribute 'undefined'",
        "TypeError: 'object' object is not iterable",
        "refused: The arguments of a call are no JSON array",
        "refused: The arguments of a call are no JSON array",
        "refused: The keyword arguments of a call are no JSON object",
        "refused: A call needs a function's name",
    ]
