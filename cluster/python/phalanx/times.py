# SPDX-License-Identifier: BSD-3-Clause
"""How far a result's tasks are, how long they took, and when their output is whole."""

from concurrent.futures import ALL_COMPLETED
from datetime import datetime, timezone

from . import display, timeline
from .deadlines import end_of, seconds_left

OUTPUT_SECONDS = 1  # for output, and values of executed code, that came before a reply
_OUTPUT_KEYS = ("stdout", "stderr", "outputs", "error", "execute_result", "execute_input", "data")


class TimesFace:
    """Needs of its class: _raw, _replied, _submitted, _fname, _pump, _task_metadata, _metadata_list,
    _reached, _require_ready, wait_for_output."""

    _output_awaited = False

    @property
    def progress(self):
        """How many tasks have ended; of a map how many elements are done."""
        return self._replied

    @property
    def elapsed(self):
        """Seconds since the submission, until the last result."""
        if self.ready():
            return self.wall_time
        return (datetime.now(timezone.utc) - self._submitted).total_seconds()

    @property
    def serial_time(self):
        """Seconds of computation, summed over the tasks (items of a long map share some).
        TimeoutError when they have not ended."""
        self._require_ready()
        times = [(md["started"], md["completed"]) for md in self._records()]
        return sum((end - start).total_seconds() for start, end in times if end and start)

    @property
    def wall_time(self):
        """Seconds from the submission to the last result. TimeoutError when that is not here."""
        records = self._finished_metadata()
        received = [md["received"] for md in records if md["received"]]
        return self.timedelta([md["submitted"] for md in records], received)

    def timeline(self):
        """When each engine was at work on my tasks, and for how much of the time: a picture in a
        notebook, text elsewhere. Of several results: AsyncResult.join(a, b).timeline(). The times are
        those of engines' clocks; items of a long map come in batches, which are its tasks here."""
        return timeline.of(self._fname, self._records())

    def _records(self):
        """The metadata of my tasks, each once: items of a long map share some."""
        self._pump()
        if hasattr(self._raw, "places"):
            return [self._task_metadata(index) for index, _ in self._raw.places()]
        return list({md["msg_id"]: md for md in self._metadata_list()}.values())

    @staticmethod
    def timedelta(start, end, start_key=min, end_key=max):
        """Seconds between two times, or between one chosen from each list of times, by default the
        first of `start` and the last of `end`: ar.timedelta(ar.submitted, ar.received)."""
        start = start if isinstance(start, datetime) else start_key(start)
        end = end if isinstance(end, datetime) else end_key(end)
        return (end - start).total_seconds()

    def _metadata_with(self, key):
        """The tasks' metadata, of which `key` is wanted. Output comes by another way than replies: once
        all of these are here, it is waited for, once."""
        if key in _OUTPUT_KEYS and not self._output_awaited and self.ready():
            self.wait_for_output(OUTPUT_SECONDS)
            self._output_awaited = True
        return self._metadata_list()

    def _finished_metadata(self):
        self._require_ready()
        return self._metadata_list()

    def wait_interactive(
        self, interval=0.1, timeout=-1, widget=None, return_when=ALL_COMPLETED
    ):
        """Waits, with a bar that shows how many tasks have ended: tqdm's where it is installed, in
        a notebook as a widget (`widget` decides otherwise). interval: seconds between two looks.
        return_when: for what to wait. Returns after `timeout` seconds in any case."""
        end = end_of(timeout)
        bar = display.progress_bar(len(self), self._fname, "tasks", widget)
        try:
            while not self._reached(return_when, end_of(interval)) and seconds_left(end) != 0:
                bar.update(self.progress - bar.n)
            bar.update(self.progress - bar.n)
        finally:
            bar.close()
