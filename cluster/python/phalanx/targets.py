# SPDX-License-Identifier: BSD-3-Clause
"""Targets: which engines a call means."""

import json

from .adapting import none_there

TAG, HOST = "tag:", "host:"  # what engines call themselves, among their features


class TargetsFace:
    """What a Client knows of its engines, and whom `targets` mean: ids, negative ones from the end, a
    slice of the ids there are, "all", or a name: a tag or a host."""

    @property
    def ids(self):
        """The ids of the engines registered now, ascending."""
        return self._raw.ids()

    _ids = ids

    @property
    def tags(self):
        """{tag: ids of the engines that were started with `pxengine --tags=TAG,...`}. A tag or a host
        stands where targets do: rc["gpu"], load_balanced_view("gpu"), %px --targets gpu."""
        return self._by_name(TAG)

    @property
    def hosts(self):
        """{host: ids of the engines there}, of engines of this package."""
        return self._by_name(HOST)

    @property
    def _engines(self):
        """uuids by engine id."""
        return {i: self._raw.uuid(i) for i in self.ids}

    def _by_name(self, kind):
        names = {}
        for engine in self.ids:
            for feature in json.loads(self._raw.features(engine) or "[]"):
                if isinstance(feature, str) and feature.startswith(kind):
                    names.setdefault(feature[len(kind) :], []).append(engine)
        return names

    def _named(self, name):
        """The engines of a tag or, where nobody has that tag, of a host."""
        if name.lstrip("-").isdigit():
            raise TypeError("targets are engine ids, ints such as %s, not %r" % (name, name))
        ids = self._raw.ids(TAG + name) or self._raw.ids(HOST + name)
        if not ids:
            known = ", ".join([*self.tags, *self.hosts]) or "none"
            raise IndexError("No engine has the tag or host %r; known: %s" % (name, known))
        return ids

    def _build_targets(self, targets):
        """(uuids as bytes, ids) of targets: ipyparallel's form."""
        ids = self._ids_of(targets)
        return [(self._uuid(i) or "").encode() for i in ids], ids

    def _ids_of(self, targets):
        ids = self.ids
        if not ids:
            raise none_there(self)
        if targets is None:
            return ids
        if isinstance(targets, str):
            return ids if targets.lower() == "all" else self._named(targets)
        if isinstance(targets, slice):
            return ids[targets]
        if isinstance(targets, int):
            targets = [targets]
        if not isinstance(targets, (tuple, list, range)):
            raise TypeError(
                "targets by int/slice/collection of ints/name only, not %s" % type(targets)
            )
        return [self._one_target(t, ids) for t in targets]

    @staticmethod
    def _one_target(target, ids):
        if not isinstance(target, int):
            raise TypeError("targets are engine ids (ints), not %s" % type(target))
        if target < 0 and -target <= len(ids):
            target = ids[target]
        if target not in ids:
            raise IndexError(
                "No such engine: %i; there are %s. client.direct_view() is of those that there are at"
                " each call" % (target, ids)
            )
        return target
