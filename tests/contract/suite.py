"""The contract for a backend of your own: import all of this into a test module, and say what its ``engine`` is.

``examples/backend/tests/test_contract.py`` does.
"""

# ruff: noqa: F403 - whatever these modules have is meant
from tests.contract.fixtures import *
from tests.contract.test_images import *
from tests.contract.test_isolation import *
from tests.contract.test_leaks import *
from tests.contract.test_lifecycle import *
from tests.contract.test_mounts import *
from tests.contract.test_resources import *
