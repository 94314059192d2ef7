# SPDX-License-Identifier: BSD-3-Clause
"""Reading what %px shows."""
import re


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def shown_text(text):
    """What is seen of text with carriage returns."""
    return "\n".join(line.rpartition("\r")[2] for line in text.split("\n"))


def on_a_terminal(text):
    """What a terminal shows of it: a carriage return wipes nothing by itself."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part):]
        lines.append(shown.rstrip())
    return "\n".join(lines)


def by_engine(text, stream="stdout"):
    """What each engine said, however what they said alike came together: {id: text}."""
    said, speakers = {}, []
    for line in shown_text(text).splitlines(keepends=True):
        label = re.fullmatch(r"\[(\w+):([-,\d]+)\] \n", line)
        if label:
            assert label[1] == stream
            parts = [part.split("-") for part in label[2].split(",")]
            speakers = [i for part in parts for i in range(int(part[0]), int(part[-1]) + 1)]
        for engine in speakers if not label else []:
            said[engine] = said.get(engine, "") + line
    return said
