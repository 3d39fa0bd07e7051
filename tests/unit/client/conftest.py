import pytest


@pytest.fixture(autouse=True)
def may_resume(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends a call ends the session, except where resuming is what is tested."""
    if "resume" not in request.module.__name__:
        monkeypatch.setattr("segstream.client.call.may_resume", lambda *_: False)
