# SPDX-License-Identifier: BSD-3-Clause
"""Executes a notebook through Jupyter and prints each cell's output as it comes.

    execute.py NOTEBOOK EXECUTED

Exits with 1 when a cell fails; the notebook is then written up to that cell.
"""

import re
import sys

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def as_text(output):
    """What a terminal can show of one output."""
    if output["output_type"] == "stream":
        return output["text"]
    if output["output_type"] == "error":
        return "\n".join(output["traceback"]) + "\n"
    data = output["data"]
    others = [
        f"<{mime}, {len(data[mime]) // 1024 + 1} KB>\n"
        for mime in data
        if mime.startswith("image/")
    ]
    prompt = ""
    if output["output_type"] == "execute_result":
        prompt = f"Out[{output['execution_count']}]: "
    return prompt + data.get("text/plain", "").rstrip("\n") + "\n" + "".join(others)


class LiveClient(NotebookClient):
    """A notebook client that shows outputs when they arrive, not when the cell has ended."""

    def output(self, outs, msg, display_id, cell_index):
        shown = super().output(outs, msg, display_id, cell_index)
        if msg["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            content = dict(msg["content"], output_type=msg["msg_type"])
            text = as_text(content)
            sys.stdout.write(text if sys.stdout.isatty() else ANSI.sub("", text))
            sys.stdout.flush()
        return shown

    async def async_execute_cell(self, cell, cell_index, *args, **kwargs):
        if cell["cell_type"] == "code":
            print(f"\nIn [{self.code_cells_executed + 1}]: " + cell["source"].replace("\n", "\n    "))
        return await super().async_execute_cell(cell, cell_index, *args, **kwargs)


def main(source, target):
    notebook = nbformat.read(source, as_version=4)
    client = LiveClient(notebook, timeout=120)
    try:
        client.execute()
    except CellExecutionError:
        return 1
    finally:
        nbformat.write(notebook, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
