# SPDX-License-Identifier: BSD-3-Clause
"""How code objects travel."""

from _phalanx_wire.canning import code_ctor
