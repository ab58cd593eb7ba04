"""youki under containerd 2.3, where somebody installed it: walls, limits, mounts, and that nothing is left.

Not the whole contract: it does not tell containerd why it could not start a program.
"""

# ruff: noqa: F403 - every test of these modules is meant

from __future__ import annotations

import shutil

import pytest

from tests.contract.engines import YOUKI
from tests.contract.fixtures import on

if shutil.which("youki"):
    from tests.contract.test_isolation import *
    from tests.contract.test_leaks import *
    from tests.contract.test_mounts import *
    from tests.contract.test_resources import *

    engine = on(YOUKI)

marks = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.engines]
pytestmark = marks  # type: ignore[assignment] # theirs is one mark, and came with the rest
