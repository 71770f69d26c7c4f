"""Options of this test suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-capacities",
        action="store_true",
        help="drive the store through both traces at all six sizes, not at the two smallest",
    )
