"""YAML's numbers as people write them: 30, 1.5, 1e3. What YAML 1.1 reads otherwise (010 is 8, 1:30 is 90) stays text."""

from __future__ import annotations

import re
from typing import TypeVar

import yaml

_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(?:0|[1-9][0-9]*)",
    "tag:yaml.org,2002:float": r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}

Kind = TypeVar("Kind", bound=type[yaml.resolver.Resolver])


def with_plain_numbers(kind: Kind) -> Kind:
    """Has a class that resolves YAML's scalars take for a number only what everybody reads as that number."""
    kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
        for first, resolvers in kind.yaml_implicit_resolvers.items()
    }
    for tag, pattern in _NUMBERS.items():
        kind.add_implicit_resolver(tag, re.compile(rf"(?:{pattern})\Z"), list("-+.0123456789"))
    return kind
