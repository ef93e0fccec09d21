"""What a shell offers for a word that is not whole: presets, schedulers, models. Files a shell knows by itself.

No torch here, and nothing is said: on any trouble there is nothing to offer.
"""

from __future__ import annotations

from t2vcli.errors import T2VError
from t2vcli.schedulers import SCHEDULERS

Offers = list[tuple[str, str]]
"""Words, each with what it is."""


def presets(incomplete: str) -> Offers:
    """Returns the presets that begin so, with their descriptions."""
    from t2vcli.presets import list_presets

    try:
        found = list_presets()[0]
    except T2VError:
        return []
    # a shell has a line for each, and Typer breaks longer ones
    return [(each.name, each.description.partition(",")[0][:48]) for each in found if each.name.startswith(incomplete)]


def schedulers(incomplete: str) -> Offers:
    return [(name, "") for name in SCHEDULERS if name.startswith(incomplete)]


def devices(incomplete: str) -> Offers:
    return [(name, "") for name in ("auto", "cpu", "cuda", "cuda:0", "mps") if name.startswith(incomplete)]


def models(incomplete: str) -> Offers:
    """Returns the models in the hub's cache that begin so."""
    from t2vcli.weights.cached import names_in_cache

    try:
        return [(name, "in the cache") for name in names_in_cache() if name.startswith(incomplete)]
    except (T2VError, OSError):
        return []


def presets_and_models(incomplete: str) -> Offers:
    return presets(incomplete) + models(incomplete)
