"""The guidelines that reviewers read: a template for pairs and one for whole answers.

A change of a template that could change an answer is a new version of the guidelines, and a new file.
"""

from __future__ import annotations

import jinja2

from stairdata_review.items import PAIR_KINDS

CONTACT = "the person who invited you"


def guidelines_of(kind: str, *, in_argilla: bool, contact: str = CONTACT) -> tuple[str, str]:
    """Return the version of the guidelines for a kind, and their text in markdown.

    Args:
        kind: of what is reviewed.
        in_argilla: the answers are given there, and not in a table.
        contact: whom reviewers may talk to.
    """
    version = "pairs/1" if kind in PAIR_KINDS else "answers/1"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stairdata_review"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(f"guidelines_{version.replace('/', '_v')}.md.jinja")
    return version, template.render(contact=contact, in_argilla=in_argilla)
