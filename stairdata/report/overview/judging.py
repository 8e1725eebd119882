"""How far judges and reviewers can be trusted: checks against people's labels, and agreement of reviewers."""

from __future__ import annotations

from typing import Any

from stairdata.report.overview.content import ReportSection, ReportTable, interval, number, sentence, share, short
from stairdata.report.overview.sources import ReportSources, is_number
from stairdata.search.refusal import RATES_BEFORE_TUNING, REFUSAL_RULE_CHECK, refusal_rule_note
from stairdata_schemas.aliases import Json


def recall_note() -> str:
    """Return in short what stands beside every figure that the rule of refusals made."""
    recalls = [rates.recall for rates in REFUSAL_RULE_CHECK.values()]
    return (
        f"Refusals are told by their words: the rule finds {min(recalls):.0%} to {max(recalls):.0%} of them on models "
        f"that it was tuned on, and found {RATES_BEFORE_TUNING.recall:.0%} on one that it was not."
    )


def judge_section(sources: ReportSources, *, uses_rule: bool) -> ReportSection | None:
    """Return checks of judges.

    Args:
        sources: of the report.
        uses_rule: refusals on the page are told by their words.
    """
    tables = [_check(each) for each in sources.judge_checks]
    if uses_rule:
        tables.append(_rule())
    return ReportSection("judge-check", "How far judges can be trusted", tables=tables) if tables else None


def _rule() -> ReportTable:
    rows = [[name, f"{rates.recall:.3f}", f"{rates.precision:.3f}"] for name, rates in REFUSAL_RULE_CHECK.items()]
    before = RATES_BEFORE_TUNING
    rows.append(["Mistral, before its answers were read", f"{before.recall:.3f}", f"{before.precision:.3f}"])
    header = ["answers of", "recall", "precision"]
    return ReportTable(
        "The rule that tells refusals by their words, on XSTest's labels", header, rows, [sentence(refusal_rule_note())]
    )


def _check(found: Json) -> ReportTable:
    """Return what `stairdata check-judge --json` said."""
    models = found.get("models")
    named = models if isinstance(models, dict) and len(models) > 1 else {}
    rows = [
        _agreement(name, each)
        for name, each in {**named, "all": found.get("overall")}.items()
        if isinstance(each, dict)
    ]
    header = ["answers of", "answers", "accuracy", "precision", "recall", "kappa"]
    disagreements, unread = found.get("disagreements"), found.get("unread")
    notes = [f"{disagreements} disagreements with people's labels; {unread} answers without a readable verdict."]
    return ReportTable(f"The judge {short(str(found['judge']))} against people's labels", header, rows, notes)


def _agreement(name: str, found: Json) -> list[str]:
    accuracy = found.get("accuracy")
    rows = accuracy.get("rows") if isinstance(accuracy, dict) else None
    figures = [_figure(found.get(each), "mean") for each in ("accuracy", "precision", "recall")]
    return [short(name), number(rows) if isinstance(rows, int) else "", *figures, _figure(found.get("kappa"), "value")]


def _figure(found: Any, key: str) -> str:
    if not isinstance(found, dict) or not is_number(found.get(key)):
        return ""
    low, high = (found[end] if is_number(found.get(end)) else None for end in ("low", "high"))
    return interval(found[key], low, high)


def review_section(sources: ReportSources) -> ReportSection | None:
    """Return how far reviewers agree, with each other and with the search's values."""
    rows = []
    for artifact in sources.of_kind("reviews"):
        found = artifact.manifest.details.get("agreement")
        rows += _reviews(artifact.reference, found) if isinstance(found, dict) and found else []
    if not rows:
        return None
    header = ["reviews", "answers, items, reviewers", "question", "alpha", "share of equal answers", "of so many"]
    notes = [
        "Alpha is Krippendorff's: 1 where all agree, 0 where they agree as often as chance would. Equal answers: "
        "the share among all pairs of answers to one item."
    ]
    return ReportSection(
        "reviews", "Agreement of reviewers", tables=[ReportTable("Agreement by question", header, rows, notes)]
    )


def _reviews(reference: str, found: Json) -> list[list[str]]:
    size = ", ".join(str(found.get(name, "")) for name in ("answers", "items", "reviewers"))
    rows = []
    for question, said in found.items():
        if isinstance(said, dict) and "pairwise" in said:
            values = [said.get(name) for name in ("alpha", "pairwise")]
            shown = [share(value) if is_number(value) else "" for value in values]
            rows.append([reference, size, question, *shown, str(said.get("pairs", ""))])
    for name, words in (
        ("against_value", "a verdict names the side of higher value"),
        ("first_side", "it names the side shown first"),
    ):
        said = found.get(name)
        if isinstance(said, dict):
            value = said.get("share")
            rows.append([reference, size, words, "", share(value) if is_number(value) else "", str(said.get("of", ""))])
    return rows
