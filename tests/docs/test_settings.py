"""docs/settings.md says what the dataclasses say."""

import importlib.util

from tests.conftest import REPOSITORY

_spec = importlib.util.spec_from_file_location("settings", REPOSITORY / "docs" / "settings.py")
settings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(settings)


def test_the_page_is_up_to_date() -> None:
    """`python docs/settings.py` writes it anew."""
    assert settings.PAGE.read_text() == settings.page()


def test_every_field_has_a_meaning_and_there_are_not_too_many() -> None:
    rows = [line for line in settings.page().splitlines() if line.startswith("| `")]
    assert all(line.split("|")[3].strip() for line in rows)
    # parts of other configs that are given as one dictionary; the others are what gin may bind
    grouped = {
        "Quirks", "RopeScaling", "Source", "StageConfig", "DoReMiConfig", "SkipConfig",
        "RollbackConfig",
    }  # fmt: skip
    bound = [c for c in settings.configs() if c.__name__ not in grouped]
    assert sum(len(vars(config).get("__annotations__", ())) for config in bound) <= 100
