# SPDX-License-Identifier: BSD-3-Clause
"""ZeroMQ's addresses, for programs whose engines connect to each other."""

import re
import socket

_LOOPBACK = "127.0.0.1"
_EVERYWHERE = ("0.0.0.0", "*")
_URL = re.compile(r"(tcp|pgm|epgm|ipc|inproc)://(.+)", re.IGNORECASE)
_TCP = re.compile(r"(\w+)://([^:/]+):(\d+)")
_HOST = re.compile(r"\*|[\w.-]+")
_given = set()  # ports that select_random_ports() has returned


def is_url(url):
    """Whether a text is the address of a socket of ZeroMQ's."""
    return _URL.match(url) is not None


def split_url(url):
    """("tcp", "host", "port") of tcp://host:port; AssertionError for another one."""
    found = _TCP.fullmatch(url)
    if found is None:
        raise AssertionError("Invalid url: %r" % (url,))
    return found.groups()


def validate_url(url):
    """True, or AssertionError that says what is wrong; TypeError for what is no text."""
    if not isinstance(url, str):
        raise TypeError("url must be a string, not %r" % type(url))
    if not is_url(url):
        raise AssertionError("Invalid url: %r" % (url,))
    if url.lower().startswith("tcp:") and not _HOST.fullmatch(split_url(url)[1]):
        raise AssertionError("Invalid url: %r" % (url,))
    return True


def validate_url_container(container):
    """validate_url() of all in a collection, however deep."""
    if isinstance(container, str):
        validate_url(container)
        return
    for element in container.values() if isinstance(container, dict) else container:
        validate_url_container(element)


def _is_here(address):
    """Whether this machine has the address: nobody may bind to one of others."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def disambiguate_ip_address(ip, location=None):
    """The address to connect to where somebody listens on `ip`: of "*" and "0.0.0.0" the one of
    the host `location`, or loopback if that is this host or not given."""
    if ip not in _EVERYWHERE:
        return ip
    if not location or location == socket.gethostname():
        return _LOOPBACK
    try:
        address = socket.gethostbyname(location)
    except OSError:  # known elsewhere, or not at all
        return location
    return _LOOPBACK if _is_here(address) else address


def disambiguate_url(url, location=None):
    """The same for an address such as tcp://*:10101; one of another kind is left as it is."""
    try:
        protocol, ip, port = split_url(url)
    except AssertionError:
        return url
    return "%s://%s:%s" % (protocol, disambiguate_ip_address(ip, location), port)


def select_random_ports(n):
    """`n` TCP ports that are free, and were not returned before."""
    held, ports = [], []
    try:
        while len(ports) < n:
            held.append(socket.socket())
            held[-1].bind(("", 0))
            port = held[-1].getsockname()[1]
            if port not in _given:
                ports.append(port)
    finally:
        for probe in held:
            probe.close()
    _given.update(ports)
    return ports


__all__ = [
    "disambiguate_ip_address", "disambiguate_url", "is_url", "select_random_ports", "split_url",
    "validate_url", "validate_url_container",
]
