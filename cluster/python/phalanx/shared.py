# SPDX-License-Identifier: BSD-3-Clause
"""share(): data that the engines of this host map instead of receiving.

What is shared lies in a memfd, sealed, so that nobody can change or shorten it. What is sent says
where that is: /proc/PID/fd/N of this process, and which file it must be. An engine maps it
privately: all that it reads is the one copy that there is, and what it writes becomes its own. Nothing
of it has a name in a file system, so nothing is left of it when this process and the engines end.

A Shared that was sent is kept until the call has ended, whether or not somebody holds it. One that an
engine returns is sent as the data itself.
"""

import contextlib
import functools
import os
import pickle
import sys
import threading
import weakref

NAME = "phalanx.share()"  # in each error of its
LARGE = 1 << 20  # bytes of an array from which on push() shares it
_ALIGN = 64  # bytes: vector instructions, and no cache line of two arrays


class _Packed(threading.local):
    """What this thread has pickled for a call that is not submitted yet."""

    def __init__(self):
        self.items = weakref.WeakSet()


packed = _Packed()
held = []  # (what the C library knows of a call, what of this it was sent)


def share(obj):
    """A Shared: stands for `obj` in what is sent to engines of this host, where it arrives as `obj`
    itself. Its large buffers (arrays, data frames, bytes; whatever pickle's protocol 5 leaves out)
    are copied once, here, however many engines use them, and are not sent.

        big = phalanx.share(array)
        rc[:]["a"] = big; rc.load_balanced_view().map(f, repeat(big), range(100))

    Engines may write to what they get: each then has its own copy of the pages that it wrote.
    Calls that begin when this process has ended, or on another host, fail and say so."""
    return Shared(obj)


class Shared:
    """What share() returns. nbytes: of its buffers; they are given back when nobody holds this, no
    call that it was sent with runs, and engines have dropped what they made of it."""

    def __init__(self, obj):
        from . import _phalanx, pickle5

        prune()
        self._stream, *buffers = pickle5.dumps(obj)
        self._pid = os.getpid()
        self._fd = os.memfd_create("phalanx-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._holder = _phalanx.hold(self._fd)
        self._ranges = _write(self._fd, buffers)
        self._file = _seal(self._fd)
        self.nbytes = sum(buffer.nbytes for buffer in buffers)

    def __repr__(self):
        return "<Shared %d bytes>" % self.nbytes

    def get(self):
        """The object, on this memory."""
        return _open(self._where(), self._ranges, self._stream)

    def _where(self):
        return _host(), self._pid, self._fd, self._file

    def __reduce_ex__(self, protocol):
        if _is_engine():  # which cannot know when a result is unpickled: it goes itself
            kind = pickle.PickleBuffer if protocol >= 5 else bytearray
            buffers = [kind(buffer) for buffer in _buffers(self._where(), self._ranges)]
            return functools.partial(pickle.loads, buffers=buffers), (self._stream,)
        packed.items.add(self)
        return _open, (self._where(), self._ranges, self._stream)


def deliver(client, targets, names, send):
    """send(names), which waits, with large arrays shared where all engines are on this host; once more
    with the arrays themselves if an engine may not look into this process."""
    from .error import KernelError  # not needed on engines, as what follows
    from .targets import HOST

    large = {name: value for name, value in names.items() if _is_worth_it(value)}
    if not large or not client._raw.feature(HOST + _host(), client._ids_of(targets)):
        return send(names)
    with contextlib.suppress(OSError):  # no descriptor or memory is left, or memfds are forbidden
        large = {name: share(value) for name, value in large.items()}
    try:
        return send({**names, **large})
    except KernelError as e:
        if NAME not in str(e):
            raise
    return send(names)


def _is_worth_it(value):
    from .canning import is_array

    return is_array(value) and value.nbytes >= LARGE and value.flags.forc and not value.dtype.hasobject


def hold(raw):
    """The call that was just submitted keeps what this thread has packed for it until it ends.
    Called where something is packed, or held for calls that may have ended."""
    items = list(packed.items)
    packed.items.clear()
    prune()
    if items:
        held.append((raw, items))


def prune():
    """Lets go of what was held for calls that have ended."""
    for entry in list(held):  # other threads add and take meanwhile
        if not entry[0].running:
            with contextlib.suppress(ValueError):
                held.remove(entry)


def _write(fd, buffers):
    """Their (begin, size) in the file."""
    ranges, end = [], 0
    for buffer in buffers:
        begin = -(-end // _ALIGN) * _ALIGN
        end = begin + buffer.nbytes
        ranges.append((begin, buffer.nbytes))
        while buffer.nbytes:
            buffer = buffer[os.pwrite(fd, buffer, end - buffer.nbytes) :]
    return ranges


def _seal(fd):
    """Nobody changes it from now on. Says what it is: (device, inode, size)."""
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return _identity(os.fstat(fd))


def _identity(stat):
    return stat.st_dev, stat.st_ino, stat.st_size


def _is_engine():
    bridge = getattr(sys.modules.get("_phalanx_host"), "bridge", None)
    return bridge is not None and bridge.options["engine"]


def _host():
    return os.uname().nodename


def _open(where, ranges, stream):
    """On an engine: the object."""
    return pickle.loads(stream, buffers=_buffers(where, ranges))


def _buffers(where, ranges):
    memory = _map(*where) if where[-1][2] else memoryview(b"")
    return [memory[begin : begin + size] for begin, size in ranges]


def _map(host, pid, fd, file):
    import mmap

    here = _host()
    if host != here:
        raise _gone(host, pid, "it can be used on that host alone, and this is %s" % here)
    try:
        # Another program may be that process by now, and have a pipe there.
        own = os.open("/proc/%d/fd/%d" % (pid, fd), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise _gone(host, pid, "it is not there: %s" % e.strerror) from None
    try:
        if _identity(os.fstat(own)) != file:
            raise _gone(host, pid, "it is no longer there")
        return memoryview(mmap.mmap(own, file[2], mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE))
    except OSError as e:
        raise _gone(host, pid, "it cannot be mapped: %s" % e.strerror) from None
    finally:
        os.close(own)


def _gone(host, pid, why):
    return RuntimeError(NAME + ": the data was in process %d of %s: %s" % (pid, host, why))
