# SPDX-License-Identifier: BSD-3-Clause
"""Questions to a running cluster: what engines do (%pxstacks), what they use, why tasks wait
(%pxwhy)."""

import json
import time

from IPython.core.error import UsageError

from . import _magics, _phalanx, error
from .asyncresult import AsyncResult

STACKS_SECONDS = 3  # an engine that lives answers in milliseconds, whatever its Python does
WHY_SECONDS = 5
ARRIVAL_SECONDS = 0.5  # for tasks that were just sent to be known to the scheduler
WORK_SECONDS = 1  # for engines to say what they are busy with

# ---- stacks


def stacks(client, targets=None, seconds=None):
    """The Python stacks of engines (None or "all": of each), merged into one tree, as text.

    Engines answer also while they compute or hold the GIL; those that do not answer within
    `seconds`, or do not know the question (ipengine), are named below the tree.
    """
    ids = client._ids_of(targets)
    able = answering(client, ids)
    answers = _ask_stacks(client, able, STACKS_SECONDS if seconds is None else seconds)
    text = _magics.stacks([answers[i] for i in able if isinstance(answers.get(i), tuple)])
    mute = [i for i in able if i not in answers]
    if mute:
        text += "no answer from %s\n" % _engines(mute)
    for engine in able:
        if isinstance(answers.get(engine), str):
            text += "engine %d: %s\n" % (engine, answers[engine])
    unable = [i for i in ids if i not in able]
    if unable:
        text += "%s cannot tell; engines of pxengine can\n" % _engines(unable)
    return text


def _engines(ids):
    return "engine%s %s" % ("" if len(ids) == 1 else "s", _magics.ranges(ids))


def answering(client, ids):
    """Those of these engines that answer on control whatever their Python does: pxengine's."""
    return [i for i in ids if client._raw.feature("stacks", [i])]


def _ask(client, message, ids, seconds):
    """{id: the event of its reply}, of those that answer in time."""
    if not ids:
        return {}
    try:
        raw = client._raw.submit(_phalanx.CONTROL, targets=ids, message=message, content="{}")
    except IndexError:  # some have just gone
        known = client.ids
        return _ask(client, message, [i for i in ids if i in known], seconds)
    deadline = time.monotonic() + seconds
    answers = {}
    while len(answers) < len(ids):
        finished = raw.finished  # before what came is taken: what comes in between is taken next
        event = raw.next()
        if event is not None:
            if event.type == _phalanx.REPLY:
                answers[ids[event.task]] = event
            continue
        left = max(0, deadline - time.monotonic())
        if finished == len(ids) or not raw.wait(_phalanx.EVENT, left):
            break
    return answers


def _ask_stacks(client, ids, seconds):
    answers = _ask(client, "stacks_request", ids, seconds)
    return {engine: _read_stacks(engine, event) for engine, event in answers.items()}


def _read_stacks(engine, event):
    content = json.loads(event.content)
    if event.failed:
        return str(content.get("evalue") or "it could not answer")
    busy = content.get("busy") or {}
    return (
        engine, str(content.get("stacks") or ""), busy.get("msg_type"),
        float(busy.get("since_s") or 0),
    )


# ---- usage


def usage(client, ids, seconds):
    """{id: what its usage_reply says}, of those that answer in time."""
    answers = _ask(client, "usage_request", ids, seconds)
    there = [i for i in ids if i in answers and not answers[i].failed]
    return {i: json.loads(answers[i].content) for i in there}


# ---- why


def why(client, line, last, scope):
    """Why the tasks named in `line` (msg_ids, or names of AsyncResults in `scope`; empty: those of
    `last`) are not done, as text."""
    results = [scope[w] for w in line.split() if isinstance(scope.get(w), AsyncResult)]
    ids = [w for w in line.split() if not isinstance(scope.get(w), AsyncResult)]
    if not line.split():
        if last is None:
            raise UsageError("%pxwhy: there has been no %px yet; name an AsyncResult or a msg_id")
        results = [last]
    for word in ids:
        if word.isidentifier() and word in scope:
            raise UsageError("%%pxwhy: '%s' is not an AsyncResult" % word)
    done, named = 0, set(ids)
    for result in results:
        result._pump()
        for index, task in enumerate(result._tasks):
            if task.reply is None:
                ids.append(result._raw.task_id(index))
            else:
                done += 1
    text = "%d task%s done\n" % (done, "" if done == 1 else "s") if done else ""
    if not ids:
        return text
    own = set(ids) - named
    return text + _why_of(client, ids, own, results) + _work_of(client, results)


def _engines_of(results):
    """The engines of tasks that have no reply, as far as they are known."""
    return sorted({
        result._raw.task_engine(index)
        for result in results
        for index, task in enumerate(result._tasks)
        if task.reply is None and result._raw.task_engine(index) >= 0
    })


def _work_of(client, results):
    """What the engines that are waited for, or all, are busy with, and since when."""
    ids = _engines_of(results) or client.ids
    answers = _ask_stacks(client, answering(client, ids), WORK_SECONDS).values()
    return _magics.stacks([(a[0], "") + a[2:] for a in answers if isinstance(a, tuple)])


def _why_of(client, ids, own, results):
    """own: those of them that were sent from here, and may not have arrived yet."""
    request = json.dumps({"msg_ids": ids})
    end = time.monotonic() + ARRIVAL_SECONDS
    try:
        while True:
            reply = client._raw.query("why_request", request, WHY_SECONDS)
            content = json.loads(reply)
            if content.get("status") != "ok" or "tasks" not in content:
                break
            states = [task.get("state") for key, task in content["tasks"].items() if key in own]
            if "unknown" not in states or time.monotonic() > end:
                return _magics.why(reply)
            time.sleep(0.01)
    except (TimeoutError, _phalanx.ClosedError, ValueError):
        pass
    return _what_is_known(client, ids, results)


def _what_is_known(client, ids, results):
    """For a controller that gives no reasons: where tasks are, and what stands before them."""
    text = "this controller gives no reasons (pxcontroller does); what it tells:\n"
    engines = _engines_of(results)
    try:
        status = client.queue_status()
    except (TimeoutError, error.KernelError, _phalanx.ClosedError):
        return text + "nothing: it does not answer\n"
    for engine in engines:
        queue = status.get(engine)
        if queue is None:
            text += "engine %d is gone\n" % engine
        else:
            text += "engine %d: %d queued or running directly, %d by the scheduler\n" % (
                engine, queue.get("queue", 0), queue.get("tasks", 0)
            )
    if not engines:
        text += "%d task%s not given to an engine yet\n" % (
            status.get("unassigned", len(ids)), "" if len(ids) == 1 else "s"
        )
    return text
