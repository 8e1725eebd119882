"""The page itself: sections out of sources, rendered, and written with a PNG of each chart."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from stairdata.generators.evaluations.judging.answer_judge import RULE
from stairdata.report.overview import charts, flow
from stairdata.report.overview.answers import answers
from stairdata.report.overview.content import ReportSection, number
from stairdata.report.overview.distributions import distributions_section
from stairdata.report.overview.evaluation import evaluation_section
from stairdata.report.overview.examples import EXAMPLES, SEED, TEXT_LIMIT, Examples, examples
from stairdata.report.overview.judged_rows import judged_rows
from stairdata.report.overview.judging import judge_section, review_section
from stairdata.report.overview.sources import ReportSources
from stairdata.report.overview.tradeoff import rounds_section, tokens_section
from stairdata.report.overview.trainings import held_out_section, losses_section
from stairdata.report.templating import environment, script_json
from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import UsageError, visible
from stairdata_schemas.files import write_atomic

PLACE = Path("report") / "index.html"
"""Of the page in a run's folder, or in the one where the command runs."""
LONG_CELL = 36
"""Characters."""


class WrittenReport(NamedTuple):
    """What was written, and what it holds."""

    page: Path
    images: list[Path]
    sections: list[str]
    artifacts: int
    examples: int
    bytes: int

    def as_json(self) -> Json:
        """Return what `--json` prints."""
        return self._asdict() | {"page": str(self.page), "images": [str(image) for image in self.images]}


class ReportPage(NamedTuple):
    """A page before it is written."""

    html: str
    images: dict[str, bytes]
    """PNGs by file name."""
    sections: list[str]
    examples: int


def sections(sources: ReportSources) -> list[ReportSection]:
    """Return all parts for which there is data, in the order of the page."""
    judged, answered = judged_rows(sources), answers(sources)
    by_words = answered is not None or bool(sources.rounds) or (judged is not None and RULE in judged["judge"])
    found = [
        flow.flow_section(sources),
        losses_section(sources),
        distributions_section(sources),
        held_out_section(sources),
        rounds_section(sources, judged, answered),
        tokens_section(sources, judged, answered),
        evaluation_section(sources, judged),
        judge_section(sources, uses_rule=by_words),
        review_section(sources),
        flow.notes_section(sources),
        flow.lineage_section(sources),
        flow.cost_section(sources),
    ]
    return [section for section in found if section is not None]


def render(sources: ReportSources, title: str, most_examples: int = EXAMPLES) -> ReportPage:
    """Return the page and its images; the same sources give the same bytes.

    Args:
        sources: what it speaks of.
        title: its heading.
        most_examples: rows to look at.
    """
    shown = sections(sources)
    pictures: dict[str, Markup] = {}
    images: dict[str, bytes] = {}
    if charts.available():
        for chart in (chart for section in shown for chart in section.charts):
            svg, images[f"{chart.name}.png"] = charts.draw(chart)
            pictures[chart.name] = Markup(svg)  # noqa: S704 - matplotlib's, which escapes its labels
    drawn = examples(sources, most_examples)
    script = (files("stairdata.report") / "templates" / "report.js").read_text(encoding="utf-8")
    html = (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=visible(title),
            facts=_facts(sources),
            flow=flow.stages(sources),
            sections=shown,
            pictures=pictures,
            hint="" if pictures or not any(section.charts for section in shown) else charts.HINT,
            examples=drawn,
            example_words=_words(drawn),
            data=Markup(script_json(_listed(drawn))),  # noqa: S704 - no `<` is left in it
            script=Markup(script),  # noqa: S704 - our own file
            allowed_script=_hash(script),
            cell_class=_cell_class,
            visible=visible,
        )
    )
    names = [section.anchor for section in shown] + (["examples"] if drawn.rows else [])
    return ReportPage(html, images, names, len(drawn.rows))


def _hash(script: str) -> str:
    """Return what the content policy calls the page's one script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _facts(sources: ReportSources) -> list[tuple[str, str]]:
    manifests = [artifact.manifest for artifact in sources.artifacts]
    licenses = sorted({manifest.license or "unknown" for manifest in manifests})
    seeds = sorted({seed for manifest in manifests for seed in manifest.seeds.values()})
    built = sorted(manifest.created_at for manifest in manifests)
    versions = sorted({manifest.stairdata_version for manifest in manifests})
    facts = [
        ("artifacts", number(len(manifests))),
        ("trained models", number(len(sources.trainings))),
        ("built", f"{built[0]:%Y-%m-%d} to {built[-1]:%Y-%m-%d}" if built else ""),
        ("stairdata", ", ".join(versions)),
        ("seeds", ", ".join(map(str, seeds))),
        ("licences of the data", ", ".join(licenses)),
    ]
    return [(name, visible(value)) for name, value in facts if value and value != "0"]


def _listed(drawn: Examples) -> Json:
    return {"examples": drawn.rows, "filters": list(drawn.filters)}


def _words(drawn: Examples) -> str:
    shown = len(drawn.rows)
    words = f"{shown:,} of {drawn.available:,} rows, drawn with seed {SEED}" if shown < drawn.available else "All rows"
    if drawn.cut:
        words += f"; {drawn.cut:,} texts are longer than {TEXT_LIMIT:,} characters and cut there"
    return words + "."


def _cell_class(cell: str) -> str:
    """Return how a cell of text is set: a short one on one line, a long one not in a narrow column."""
    return "l" if len(cell) > LONG_CELL else "s"


def write_report(
    sources: ReportSources,
    page: Path,
    title: str = "Report",
    *,
    most_examples: int = EXAMPLES,
    tell: Callable[[str], None] = lambda _: None,
) -> WrittenReport:
    """Write the page, and beside it a PNG of each chart; a file that would not change is left as it is.

    Args:
        sources: what it speaks of.
        page: file to write; its folder is made.
        title: heading of the page.
        most_examples: rows to look at.
        tell: called with what is missing.

    Raises:
        UsageError: the page can't be written there.
    """
    if page.is_dir():
        raise UsageError(f"{page} is a folder; name a file, such as {page / PLACE.name}")
    made = render(sources, title, most_examples)
    if not made.images and not charts.available():
        tell(f"charts are left out: they need matplotlib ({charts.HINT}); their figures are in tables")
    page.parent.mkdir(parents=True, exist_ok=True)
    content = made.html.encode("utf-8")
    for name, image in made.images.items():
        _write(page.parent / name, image)
    _write(page, content)  # last: a page that is there is whole
    images = [page.parent / name for name in made.images]
    return WrittenReport(page, images, made.sections, len(sources.artifacts), made.examples, len(content))


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)
