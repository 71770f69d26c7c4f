"""Options of this test suite, and the I/O engines that tests of real files run over."""

from __future__ import annotations

import pytest

from engines import VARIABLE, refused


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-capacities",
        action="store_true",
        help="drive the store through both traces at all six sizes, not at the two smallest",
    )


@pytest.fixture(params=["uring", "pool"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The I/O engine of every store of a test, its children's too, that asks for none itself."""
    name = str(request.param)
    why = refused(name)
    if why is not None:
        pytest.skip(why)
    monkeypatch.setenv(VARIABLE, name)
    return name
