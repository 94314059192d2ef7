# SPDX-License-Identifier: BSD-3-Clause
"""What programs import from ipyparallel.util."""

from datetime import datetime, timezone

from .canning import interactive
from .display import progress_bar
from .tasks import Metadata
from .urls import (
    disambiguate_ip_address, disambiguate_url, is_url, select_random_ports, split_url,
    validate_url, validate_url_container,
)


class Namespace(Metadata):
    """A dictionary whose keys are attributes, too; not those that a dictionary has anyway."""

    def __setattr__(self, key, value):
        if hasattr(dict, key):
            raise KeyError("Cannot override dict keys %r" % key)
        super().__setattr__(key, value)


class ReverseDict(dict):
    """A dictionary that is looked up both ways; no key is a value, too."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self._reverse = {}
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __getitem__(self, key):
        return self._reverse[key] if key in self._reverse else super().__getitem__(key)

    def __setitem__(self, key, value):
        if key in self._reverse:
            raise KeyError("Can't have key %r on both sides!" % (key,))
        if key in self:
            del self._reverse[super().__getitem__(key)]
        super().__setitem__(key, value)
        self._reverse[value] = key

    def pop(self, key):
        """Takes a pair out by its key: the value."""
        value = super().pop(key)
        del self._reverse[value]
        return value

    def get(self, key, default=None):
        """The other side of `key`."""
        try:
            return self[key]
        except KeyError:
            return default


def utcnow():
    """The time, in UTC and aware of it."""
    return datetime.now(timezone.utc)


def ensure_timezone(dt):
    """A time that is aware of its zone; one that is not is local."""
    return dt if dt.tzinfo else dt.astimezone()


def compare_datetimes(a, b):
    """a - b, a timedelta; times without a zone are local."""
    if bool(a.tzinfo) == bool(b.tzinfo):
        return a - b
    return ensure_timezone(a) - ensure_timezone(b)


def int_keys(dikt):
    """Turns keys that are numbers in strings into ints, as JSON had them; in place."""
    for key in list(dikt):
        try:
            number = int(key) if isinstance(key, str) else key
        except ValueError:
            continue
        if number is not key:
            if number in dikt:
                raise KeyError("already have key %r" % number)
            dikt[number] = dikt.pop(key)
    return dikt


def progress(total=None, desc="", unit="it", widget=None):
    """A progress bar: update(count), close(). widget: whether it is one of the notebook's."""
    return progress_bar(total, desc, unit, widget)


__all__ = [
    "Namespace", "ReverseDict", "compare_datetimes", "disambiguate_ip_address",
    "disambiguate_url", "ensure_timezone", "int_keys", "interactive", "is_url", "progress",
    "select_random_ports", "split_url", "utcnow", "validate_url", "validate_url_container",
]
