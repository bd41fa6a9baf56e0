"""What tests of fetching share."""

import pytest

from tests.media_host import Certificate


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Making one takes a while."""
    return Certificate(tmp_path_factory.mktemp("certificate"))
