# SPDX-License-Identifier: BSD-3-Clause
"""Namespace of the helpers that views send as code."""
