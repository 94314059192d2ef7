# SPDX-License-Identifier: BSD-3-Clause
"""Namespace of the function that maps."""


def _map(f, *sequences):
    return list(map(f, *sequences))
