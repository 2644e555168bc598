"""What the commands remember stays out of the home of whoever runs the tests."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_state_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
