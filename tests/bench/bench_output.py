# SPDX-License-Identifier: BSD-3-Clause
"""Output of one cell, from the request to idle on iopub, and what the kernel's memory grew by.
ipykernel sends everything; ours shows beginning and end of a flood and keeps the rest in a file."""
import re
import threading
import time
from pathlib import Path

import zmq
from bench_kernel import OURS, THEIRS, Kernel
from common import Row, median

CELLS = {
    "20,000 printed lines": "for i in range(20000): print('line', i)",
    "100 MB printed in lines of 100 bytes":
        "for _ in range(1000000): print('x' * 99)",
    "100 MB printed in pieces of 1 MB":
        "for _ in range(100): print('x' * (1 << 20))",
    "30 MB of a child's output": "import os; os.system('yes | head -c 30000000');",
}


def resident_mb(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024


class Listener(Kernel):
    """A kernel and somebody who reads its iopub as fast as he can, without looking inside."""

    def __init__(self, command):
        super().__init__(command)
        self.idle = threading.Semaphore(0)
        self.iopub = self.context.socket(zmq.SUB)
        self.iopub.linger = 0
        self.iopub.rcvhwm = 0
        self.iopub.subscribe(b"")
        self.iopub.connect(f"tcp://127.0.0.1:{self.info['iopub_port']}")
        self.execute("pass")
        self.listening = True
        self.listener = threading.Thread(target=self.listen)
        self.listener.start()
        self.execute("pass")

    def listen(self):
        """A socket belongs to one thread: this one closes it, too."""
        while self.listening:
            if self.iopub.poll(100) and b'"idle"' in self.iopub.recv_multipart()[-1]:
                self.idle.release()
        self.iopub.close()

    def stop(self):
        self.listening = False
        self.listener.join()
        super().stop()

    def cell(self, code):
        while self.idle.acquire(blocking=False):
            pass
        begun = time.perf_counter()
        self.execute(code)
        self.idle.acquire(timeout=120)
        return time.perf_counter() - begun


def rows(runs):
    for what, code in CELLS.items():
        taken, grown = ([], []), []
        for command, times in zip((OURS, THEIRS), taken):
            with Listener(command) as kernel:
                before = resident_mb(kernel.process.pid)
                times += [kernel.cell(code) for _ in range(runs)]
                grown.append(resident_mb(kernel.process.pid) - before)
        yield Row(f"output: {what}", "ms", *(median(times) * 1e3 for times in taken))
        yield Row("  growth of the kernel", "MB", *grown)
