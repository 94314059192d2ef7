# SPDX-License-Identifier: BSD-3-Clause
"""The clusters that run, of one profile or of all."""

import glob
import os

from .cluster import Cluster
from .tunnel import profile_directory


class ClusterManager:
    """The clusters of profiles, by "profile:cluster_id"."""

    def __init__(self, **unused):
        self.clusters = {}

    @staticmethod
    def _key(cluster):
        name = os.path.basename(cluster.profile_dir)
        profile = name[len("profile_"):] if name.startswith("profile_") else cluster.profile_dir
        return "%s:%s" % (profile, cluster.cluster_id)

    def load_clusters(
        self, *, profile_dirs=None, profile_dir=None, profiles=None, profile=None,
        init_default_clusters=False, **kwargs,
    ):
        """Looks for clusters that run, in the given profiles or in all: `clusters`. With
        init_default_clusters each profile has one, running or not. kwargs: for Cluster."""
        names = profiles or ([profile] if profile else None)
        if profile_dirs is None:
            if profile_dir:
                profile_dirs = [profile_dir]
            elif names:
                profile_dirs = [profile_directory(name, None, None) for name in names]
            else:
                profile_dirs = sorted(glob.glob(profile_directory("*", None, None)))
        self.clusters = {k: c for k, c in self.clusters.items() if c._is_running()}
        for directory in profile_dirs:
            files = glob.glob(os.path.join(glob.escape(directory), "security", "cluster-*.json"))
            found = [Cluster.from_file(file, **kwargs) for file in files]
            if init_default_clusters and not found:
                found = [Cluster(profile_dir=directory, cluster_id="", **kwargs)]
            for cluster in found:
                self.clusters.setdefault(self._key(cluster), cluster)
        return self.clusters

    def new_cluster(self, **kwargs):
        """(key, cluster) of a new Cluster. KeyError when its key is taken."""
        cluster = Cluster(**kwargs)
        key = self._key(cluster)
        if key in self.clusters:
            raise KeyError("Cluster %s already exists!" % key)
        self.clusters[key] = cluster
        return key, cluster

    def get_cluster(self, cluster_id):
        """The cluster of a key."""
        return self.clusters[cluster_id]

    def remove_cluster(self, cluster_id):
        """Forgets the cluster of a key."""
        del self.clusters[cluster_id]
