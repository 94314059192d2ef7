# SPDX-License-Identifier: BSD-3-Clause
"""%pxcluster: the cluster that %px runs on, managed from a notebook."""

import sys

from IPython.core.error import UsageError

from . import _magics, ask, error
from .adapting import asked
from .deadlines import wait_until
from .display import in_kernel

_END_SECONDS = 10
_MOST = 10000  # engines at once
_USAGE_SECONDS = 1  # for engines to say what they use,
_USAGE_MOST = 1000  # where there are no more than this


def _help():
    from .magics import pxcluster

    return "\n".join(line[4:] if line[:4] == "    " else line for line in
                     pxcluster.__doc__.splitlines()).rstrip()


def _usage(what):
    raise UsageError("%%pxcluster: %s\n\n%s" % (what, _help()))


def _number(word, option):
    if not word.isdigit() or not 0 < int(word) <= _MOST:
        _usage("%s takes a number of engines, not '%s'" % (option, word[:60]))
    return int(word)


def _count(words):
    """N of -n N, --n=N or nothing."""
    if not words:
        return None
    first = words[0]
    if first in ("-n", "--n") and len(words) == 2:
        return _number(words[1], "-n")
    if first.startswith("--n=") and len(words) == 1:
        return _number(first[4:], "-n")
    if first.startswith("-n") and len(words) == 1 and len(first) > 2:
        return _number(first[2:], "-n")
    _usage("'%s' is not an option here" % " ".join(words)[:60])


def _nothing(words):
    if words:
        _usage("'%s' is not an option here" % " ".join(words)[:60])


def plural(count, what="engine"):
    """Such as "2 engines"."""
    return "%d %s%s" % (count, what, "" if count == 1 else "s")


def _named(ids):
    return "engine%s %s" % ("" if len(ids) == 1 else "s", _magics.ranges(ids))


def _running(cluster):
    client = cluster.existing()
    if client is None:
        raise error.KernelError("no cluster is running; '%pxcluster start' starts one")
    return client


# ---- commands


def _adapt(words):
    """(--adapt=MIN:MAX and --adapt-idle=S as pxcluster takes them, the other words)."""
    options, others = [], []
    for word in words:
        if options and "=" not in options[-1]:
            options[-1] += "=" + word
        else:
            (options if word.startswith("--adapt") else others).append(word)
    return options, others


def _start(cluster, words):
    adapt, words = _adapt(words)
    cluster.start(_count(words), adapt)


def _stop(cluster, words):
    _nothing(words)
    count = cluster.stop()
    print("No cluster is running." if count is None else "Ended a cluster of %s." % plural(count))


def _restart(cluster, words):
    adapt, words = _adapt(words)
    count = _count(words)
    adapt = adapt or ([] if count else cluster.own_adapt())
    before = cluster.stop()
    cluster.start(count if adapt else count or before, adapt)
    watch = sys.modules.get(__package__ + ".watch")
    client = cluster.existing()
    if watch and client is not None:
        watch.follow(client, _ends(cluster, client))


def _status(cluster, words):
    _nothing(words)
    client = _running(cluster)
    ours = "started here, ends with this session" if cluster.is_own(client) else "not started here"
    state = state_of(client)
    adapt = ["%(min)d to %(max)d as there are tasks" % a for a in state.get("adapt", ())]
    print("%s, %s (%s)" % (
        ", ".join([plural(len(client)), *adapt]), ours, client._raw.file
    ))
    for line in table(state["engines"]):
        print(line)


def _watch(cluster, words):
    from . import watch  # for those who do

    if words == ["--stop"]:
        watch.unwatch()
        return
    _nothing(words)
    client = _running(cluster)
    if not in_kernel():
        raise error.KernelError("only a notebook can show that; see 'pxcluster status --watch=1'")
    watch.watch(client, _ends(cluster, client))


def _ends(cluster, client):
    """Says whether the cluster has ended."""
    return lambda: client._raw.closed or cluster.has_ended(client)


def state_of(client, asks=True):
    """{"engines": [{"id", "queue", "tasks", "completed", …}]}, by id, and more where a pxcontroller
    is asked. KernelError where nobody answers."""
    state = asked(client) if asks else None
    if state is None:
        try:
            known = client.queue_status() if client.ids else {}
        except TimeoutError:
            raise error.KernelError("the controller does not answer") from None
        state = {"engines": [dict(known[i], id=i) for i in client.ids if i in known]}
    state["engines"].sort(key=lambda engine: engine.get("id", -1))
    _add_usage(client, state["engines"])
    return state


def _add_usage(client, engines):
    """Adds "memory_bytes", "cpu_percent" and "host_memory_percent" to those that tell."""
    ids = ask.answering(client, client.ids)
    used = ask.usage(client, ids, _USAGE_SECONDS) if len(ids) <= _USAGE_MOST else {}
    for engine in engines:
        reply = used.get(engine["id"])
        if reply:
            engine["memory_bytes"] = reply["kernel_memory"]
            engine["cpu_percent"] = reply["kernel_cpu"]
            engine["host_memory_percent"] = reply["host_virtual_memory"]["percent"]


def size_text(count):
    """Bytes as people read them, with two digits that count: "46 MB", "1.2 GB"."""
    for unit in "B", "kB", "MB", "GB":
        if count < 999.5:
            break
        count /= 1000
    else:
        unit = "TB"
    text = "%.2g" % count if count < 99.5 else "%.0f" % round(count, -1)
    return "%s %s" % (text, unit)


def table(engines):
    """Lines of text, of an engine each."""
    rows = [("engine", "host", "pid", "queued", "tasks", "done", "memory")]
    for engine in engines:
        memory = engine.get("memory_bytes")
        rows.append((
            *("-" if engine.get(key) is None else str(engine[key])
              for key in ("id", "host", "pid", "queue", "tasks", "completed")),
            "-" if memory is None else size_text(memory),
        ))
    columns = range(len(rows[0]))
    used = [i for i in columns if any(row[i] != "-" for row in rows[1:])] if rows[1:] else []
    widths = [max(len(row[i]) for row in rows) for i in columns]
    return ["  ".join(row[i].rjust(widths[i]) for i in used) for row in rows if used]


def _ids(client, text, option):
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        _usage("%s takes engines' ids as in 3,7, not '%s'" % (option, text[:60]))
    known = client.ids
    missing = [i for i in ids if i not in known]
    if missing:
        raise error.KernelError("there is no %s" % _named(missing))
    return ids


def _kill(client, ids):
    client.send_signal("SIGKILL", targets=ids)
    if not wait_until(lambda: not set(ids) & set(client.ids), _END_SECONDS):
        raise error.KernelError(
            "%s did not end within %d s" % (_named(ids), _END_SECONDS)
        )


def _end_idle(client, count):
    """Ends engines, idle ones first, the newest first."""
    ids = client.ids
    if count >= len(ids):
        raise error.KernelError(
            "there are %s; '%%pxcluster stop' ends all of them" % plural(len(ids))
        )
    status = client.queue_status()
    load = {i: status[i].get("queue", 0) + status[i].get("tasks", 0) for i in ids if i in status}
    chosen = sorted(ids, key=lambda i: (load.get(i, 0), -i))[:count]
    client.shutdown(targets=chosen, block=False)
    if not wait_until(lambda: not set(chosen) & set(client.ids), _END_SECONDS):
        busy = sorted(set(chosen) & set(client.ids))
        raise error.KernelError(
            "%s did not end within %d s; '%%pxcluster engines --kill %s' kills"
            % (_named(busy), _END_SECONDS, ",".join(map(str, busy)))
        )
    return sorted(chosen)


def _engines(cluster, words):
    client = _running(cluster)
    if not words:
        print("%s: %s" % (plural(len(client)), _magics.ranges(client.ids) or "-"))
        return
    option, _, value = words[0].partition("=")
    if option in ("--kill", "--restart"):
        value = value or ",".join(words[1:])
        ids = _ids(client, value, option)
        _kill(client, ids)
        added = cluster.add(len(ids)) if option == "--restart" else []
        print("Killed %s%s." % (_named(ids), "; started " + _named(added) if added else ""))
    elif len(words) == 1 and option[:1] == "+":
        print("Started %s." % _named(cluster.add(_number(option[1:], "engines +N"))))
    elif len(words) == 1 and option[:1] == "-" and option[1:].isdigit():
        print("Ended %s." % _named(_end_idle(client, _number(option[1:], "engines -N"))))
    else:
        _usage("'%s' is neither +N, -N, --kill nor --restart" % " ".join(words)[:60])


_commands = {
    "start": _start, "stop": _stop, "restart": _restart, "status": _status, "watch": _watch,
    "engines": _engines,
}


def command(cluster, line):
    """Runs a line of %pxcluster on a local.DefaultCluster."""
    words = line.split()
    if not words:
        _usage("which command?")
    if words[0] in ("--help", "-h"):
        print(_help())
        return
    if words[0] not in _commands:
        _usage("there is no command '%s'" % words[0][:60])
    _commands[words[0]](cluster, words[1:])
