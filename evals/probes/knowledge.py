"""A probe of facts in the training data, in a form that does not occur there.

    module_members  "from shutil import" -> " copytree"     chance 1/4

Every fact (copytree is in shutil) occurs in the domain `modules` of `embedded` beside this file as
"shutil.copytree", "copytree is in shutil" or "help(shutil.copytree)". Half of the facts are
also written as import lines, which teaches the form; the probe has the others, whose import lines
are not in that domain (real code may import some of them). The wrong options are names from other
modules, of nearly the same length; each name is a wrong option about three times as often as it is
the correct one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from jaxllm.evals.probes import embedded
from jaxllm.evals.probes.tools import COUNT, choice
from jaxllm.evaluation.tasks import Choice, multiple_choice


def module_members() -> Iterator[Choice]:
    """The name that can be imported from a module."""
    owners: dict[str, set[str]] = {}
    for module, members in embedded.facts():
        for member in members:
            owners.setdefault(member, set()).add(module)
    asked = [
        (module, member)
        for module, members in embedded.facts()
        for member in members
        if embedded.fact_split(module, member) == "test" and len(owners[member]) == 1
    ]
    random.Random("module_members").shuffle(asked)
    by_length = sorted(asked, key=lambda fact: len(fact[1]))  # stable: random within a length
    questions = []
    for i, (module, member) in enumerate(by_length):
        near = [by_length[(i + k) % len(by_length)] for d in range(1, 40) for k in (d, -d)]
        wrong = [name for other, name in near if other != module][:3]
        questions.append((module, member, wrong))
    rng = random.Random("module_members/order")
    rng.shuffle(questions)
    for number, (module, member, wrong) in enumerate(questions[:COUNT]):
        yield choice(
            f"from {module} import", f" {member}", [f" {name}" for name in wrong], number, rng
        )


multiple_choice("module_members", module_members, domain="knowledge")
