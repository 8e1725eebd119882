"""A whole round with nothing faked: Argilla, a browser, the SDK, and pairs that are built again by what people said."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from stairdata_review.blinding import other_side
from stairdata_review.items import ReviewItem, item_ids, read_items
from stairdata_review.rounds.client import Argilla, ServerAccess
from stairdata_review.rounds.datasets import list_rounds
from stairdata_review.server.running_server import RunningServer
from stairdata_schemas.artifacts import Artifact, resolve, validate_artifact
from tests.review.samples import pairs_of

if TYPE_CHECKING:
    from playwright.sync_api import Page, Response

NewPage = Callable[..., "Page"]
pytestmark = pytest.mark.slow
PROGRAM = Path(sys.executable).parent / "stairdata"
ATTACK = "document.title='owned'"
EVIL = (  # what runs where a page takes text for markup
    f'<script>{ATTACK}</script><img src=x onerror="{ATTACK}"> [md](javascript:{ATTACK}) ![i](/x.png) &lt;b&gt; &amp; '
    f'<iframe srcdoc="<script>parent.{ATTACK}</script>"></iframe><a href="javascript:{ATTACK}">a</a>'
    f"<svg onload={ATTACK}>"
)


class Reviewer(NamedTuple):
    """Somebody who signs in."""

    name: str
    password: str


def run(running: RunningServer, root: Path, *arguments: str, status: int = 0) -> str:
    """Run `stairdata` against the tests' server, and return its stdout."""
    environment = {**os.environ, "STAIRDATA_ROOT": str(root)}
    folder = ["--folder", str(running.folder)] if arguments[0] == "review" and arguments[1] != "export" else []
    done = subprocess.run(
        [str(PROGRAM), *arguments, *folder], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == status, done.stderr
    assert running.credentials().api_key not in done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture
def owner(argilla_server: RunningServer) -> Iterator[Argilla]:
    with Argilla(ServerAccess(argilla_server.url, argilla_server.credentials().api_key)) as argilla:
        yield argilla


def invite(running: RunningServer, root: Path, name: str, workspace: str) -> Reviewer:
    """Make a reviewer, as the owner does it."""
    shown = run(running, root, "review", "invite", name, "--workspace", workspace)
    said = dict(line.split(": ", 1) for line in shown.splitlines())
    assert said["url"] == running.url
    return Reviewer(said["username"], said["password"])


def sign_in(new_page: NewPage, running: RunningServer, reviewer: Reviewer, dataset: str) -> Page:
    page = new_page(viewport={"width": 1440, "height": 1400})
    page.route("https://fonts.googleapis.com/**", lambda route: route.abort())
    page.goto(f"{running.url}/sign-in")
    page.fill("input[name=Username]", reviewer.name)
    page.fill("input[name=Password]", reviewer.password)
    page.click("button[type=submit]")
    page.get_by_text(dataset, exact=True).first.click()
    page.wait_for_selector('[aria-label^="Data entry for Field"]')
    return page


def field(page: Page, title: str) -> Any:
    return page.locator(f'[aria-label="Data entry for Field: {title}"]')


def submit(page: Page, verdict: str, safe: str) -> dict[str, Any]:
    """Answer the record on the page with clicks, and return what the server made of it."""
    page.locator(f"label[for=verdict_{verdict}]").click()
    page.locator(f"label[for=safe_{safe}]").click()
    with page.expect_response(lambda response: response.url.endswith("/responses")) as sent:
        page.get_by_role("button", name="Submit").click()
    assert sent.value.ok
    found: dict[str, Any] = sent.value.json()
    return found


def mark(page: Page, title: str, words: str) -> None:
    """Mark words in a field with the mouse."""
    page.get_by_text("Wrong or unsafe", exact=True).nth("AB".index(title[-1])).click()
    field(page, title).scroll_into_view_if_needed()
    left, top, right, bottom = page.evaluate(
        """([title, words]) => {
            const node = document.querySelector(`[aria-label="Data entry for Field: ${title}"] p`).firstChild
            const range = document.createRange()
            range.setStart(node, node.textContent.indexOf(words))
            range.setEnd(node, node.textContent.indexOf(words) + words.length)
            const boxes = [...range.getClientRects()]
            const [a, z] = [boxes[0], boxes[boxes.length - 1]]
            return [a.left + 1, a.top + a.height / 2, z.right - 1, z.top + z.height / 2]
        }""",
        [title, words],
    )
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move((left + right) / 2, (top + bottom) / 2)
    page.mouse.move(right, bottom)
    page.mouse.up()


def test_a_round_from_push_to_rebuilt_pairs(
    argilla_server: RunningServer,
    owner: Argilla,
    new_page: NewPage,
    tmp_path: Path,
) -> None:
    pairs = pairs_of(tmp_path, 4)
    name = run(argilla_server, tmp_path, "review", "push", "preference-pairs", "--min-submitted", "2").strip()
    assert name == "preference-pairs-1.0.0"
    ann = invite(argilla_server, tmp_path, "ann", "stairdata")
    bob = invite(argilla_server, tmp_path, "bob", "stairdata")
    page = sign_in(new_page, argilla_server, ann, name)
    _reads_the_guidelines(page)
    _searches_and_filters(page)

    rows = {row["pair_id"]: row for row in pairs.scan().collect().to_dicts()}
    said: dict[tuple[str, str], tuple[str, str]] = {}
    for verdict, safe in [("A", "A"), ("B", "both"), ("tie", "neither"), ("both_bad", "B"), ("A", "both")]:
        item_id, first = _on_page(page, rows)
        assert _item_of(owner, submit(page, verdict, safe)["record_id"]) == item_id
        sides = {"A": first, "B": other_side(first)}
        said["ann", item_id] = sides.get(verdict, verdict), sides.get(safe, safe)
        _wait_for_another(page, rows, item_id)
    page.context.close()

    said |= _answers_through_the_sdk(argilla_server, owner, bob, name)
    figures = json.loads(run(argilla_server, tmp_path, "review", "status", "preference-pairs", "--json"))
    assert figures["answers"] == {"submitted": len(said), "draft": 1, "discarded": 1}
    assert figures["reviewers"]["ann"]["submitted"] == 5
    assert run(argilla_server, tmp_path, "review", "pull", "preference-pairs").strip() == "reviews@1.0.0"
    reviews = resolve("reviews", tmp_path)
    _holds_exactly(reviews, said)
    assert run(argilla_server, tmp_path, "review", "pull", "preference-pairs").strip() == "reviews@1.0.0"

    recipe = ["--set", "preference_pairs.reviews={policy: any-veto, overruled: flip, unreviewed: drop}"]
    run(argilla_server, tmp_path, "build", "preference-pairs", "--reviews", "reviews", *recipe)
    _is_what_reviewers_said(resolve("preference_pairs@1.1.0", tmp_path), rows, said)


def _reads_the_guidelines(page: Page) -> None:
    page.get_by_text("Guidelines").first.click()
    warning = page.get_by_text("Some of these texts are harmful or disturbing.")
    warning.wait_for()
    assert page.get_by_text("You may skip any item without giving a reason").is_visible()
    words = page.inner_text("body")
    assert words.index("Some of these texts") < words.index("What to answer")
    page.get_by_text("Guidelines").first.click()


def _searches_and_filters(page: Page) -> None:
    def total(words: str, act: Callable[[], None]) -> int:
        """Count what the search finds that asks for these words: the page sends others, when it likes."""

        def asks_for_them(response: Response) -> bool:
            return "/records/search" in response.url and f'"{words}"' in (response.request.post_data or "")

        with page.expect_response(asks_for_them) as found:
            act()
        return int(found.value.json()["total"])

    def search(words: str) -> int:
        page.locator(".search-area__input").fill(words)
        return total(words, lambda: page.locator(".search-area__input").press("Enter"))

    page.locator(".search-area__icon").first.click()
    assert search("3") == 2
    assert search("nowhere") == 0
    assert search("right") == 4
    page.reload()
    page.get_by_text("Filters").click()
    page.get_by_text("Metadata").first.click()
    page.get_by_text("Task", exact=True).click()
    assert total("safety", page.get_by_text("safety").first.click) == 2
    page.goto(page.url.split("?")[0])
    page.wait_for_selector('[aria-label^="Data entry for Field"]')


def _on_page(page: Page, rows: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Tell which pair is on the page, and which side is A."""
    last = field(page, "Continuation A").locator("p").inner_text().splitlines()[-1]
    for row in rows.values():
        for side in ("chosen", "rejected"):
            if row[side].splitlines()[-2] == last:
                return row["pair_id"], side
    raise AssertionError(last)


def _wait_for_another(page: Page, rows: dict[str, dict[str, Any]], item_id: str) -> None:
    lasts = [rows[item_id][side].splitlines()[-2] for side in ("chosen", "rejected")]
    page.wait_for_function(
        """lasts => {
            const shown = document.querySelector('[aria-label="Data entry for Field: Continuation A"] p')
            return shown && !lasts.some(last => shown.innerText.endsWith(last))
        }""",
        arg=lasts,
    )


def _item_of(owner: Argilla, record_id: str) -> str:
    return str(owner.get(f"/records/{record_id}")["external_id"])


def _answers_through_the_sdk(
    running: RunningServer, owner: Argilla, reviewer: Reviewer, name: str
) -> dict[tuple[str, str], tuple[str, str]]:
    """Answer three items, leave one as a draft, and discard one."""
    import argilla as rg
    from argilla._models import UserResponseModel  # the SDK's way for a user's own answers

    user = next(each for each in owner.get("/users")["items"] if each["username"] == reviewer.name)
    boss = rg.Argilla(api_url=running.url, api_key=running.credentials().api_key)
    client = rg.Argilla(api_url=running.url, api_key=user["api_key"])
    dataset = boss.datasets(name, workspace="stairdata")
    assert dataset is not None
    said = {}
    records = list(dataset.records(with_responses=False))[:5]
    for record, status in zip(records, ["submitted", "submitted", "submitted", "draft", "discarded"], strict=True):
        values = {"verdict": {"value": "B"}, "safe": {"value": "both"}, "comment": {"value": f"says {reviewer.name}"}}
        response = UserResponseModel(values=values, status=status, user_id=user["id"])
        client.api.records.create_record_response(record._server_id, response)
        if status == "submitted":
            said[reviewer.name, record.id] = other_side(record.metadata["a_is"]), "both"
    return said


def _holds_exactly(reviews: Artifact, said: dict[tuple[str, str], tuple[str, str]]) -> None:
    assert validate_artifact(reviews) == []
    rows = reviews.scan().collect().to_dicts()
    by_name: dict[str, set[str]] = {}
    for row in rows:
        by_name.setdefault("bob" if row["comment"] == "says bob" else "ann", set()).add(row["reviewer"])
    assert sorted(map(len, by_name.values())) == [1, 1]
    names = {hashes.pop(): name for name, hashes in by_name.items()}
    assert {(names[row["reviewer"]], row["item_id"]): (row["verdict"], row["safe"]) for row in rows} == said
    assert not {"ann", "bob"} & set(names)
    assert reviews.manifest.outcomes == {"submitted": len(said), "draft": 1, "discarded": 1}
    details = reviews.manifest.details
    assert reviews.manifest.configuration["guideline_version"] == "pairs/1"
    assert details["first_submitted_at"] <= details["last_submitted_at"]
    assert details["dataset"]["id"] == reviews.manifest.configuration["dataset_id"]
    card = (reviews.folder / "README.md").read_text(encoding="utf-8")
    assert "Krippendorff" in card


def _is_what_reviewers_said(
    built: Artifact, rows: dict[str, dict[str, Any]], said: dict[tuple[str, str], tuple[str, str]]
) -> None:
    """Compare pairs built by any-veto, flip with what that means, worked out here."""
    expected = set()
    for item_id, row in rows.items():
        verdicts = [verdict for (_, reviewed), (verdict, _) in said.items() if reviewed == item_id]
        if "chosen" in verdicts and not {"rejected", "both_bad"} & set(verdicts):
            expected.add((row["chosen"], row["rejected"]))
        if verdicts.count("rejected") > verdicts.count("chosen") + verdicts.count("both_bad"):
            expected.add((row["rejected"], row["chosen"]))
    assert validate_artifact(built) == []
    assert set(built.scan().select("chosen", "rejected").collect().iter_rows()) == expected
    assert built.manifest.parents[1].kind == "reviews"


def test_what_models_write_is_text_in_the_browser_and_spans_find_it(
    argilla_server: RunningServer, new_page: NewPage, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    words = "wrong words 😀"
    pairs = pairs_of(tmp_path, 1, [f"Prompt {EVIL}"], f"😀 {EVIL} {words} &lt;")
    run(argilla_server, tmp_path, "review", "push", "preference-pairs", "--dataset", "evil", "--workspace", "evil")
    mallory = invite(argilla_server, tmp_path, "mallory", "evil")
    page = sign_in(new_page, argilla_server, mallory, "evil")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    rows = {row["pair_id"]: row for row in pairs.scan().collect().to_dicts()}
    marked: dict[str, str] = {}
    for _ in rows:
        expect(page.locator(".fields")).to_contain_text(f"Prompt {EVIL}")
        for title in ("Continuation A", "Continuation B"):
            expect(field(page, title)).to_contain_text(f"😀 {EVIL} {words} &lt;")
        assert page.locator(".fields :is(script, iframe, img, a, b)").count() == 0
        item_id, first = _on_page(page, rows)
        mark(page, "Continuation B", words)
        submit(page, "tie", "neither")
        marked[item_id] = other_side(first)
        if len(marked) < len(rows):
            _wait_for_another(page, rows, item_id)
    assert page.title() == "Argilla"
    assert not [url for url in requests if "x.png" in url]
    page.context.close()
    run(argilla_server, tmp_path, "review", "pull", "preference-pairs", "--dataset", "evil", "--workspace", "evil")
    reviews = resolve("reviews", tmp_path).scan().collect().to_dicts()
    assert len(reviews) == len(rows) == 2
    for review in reviews:
        (span,) = review["spans"]
        assert span["side"] == marked[review["item_id"]]
        assert rows[review["item_id"]][span["side"]][span["start"] : span["end"]] == words


def test_answers_about_trees_and_records_of_strangers(
    argilla_server: RunningServer, owner: Argilla, tmp_path: Path
) -> None:
    pairs_of(tmp_path, 2, word="a < b 😀")
    name = run(argilla_server, tmp_path, "review", "push", "trees", "--workspace", "answers").strip()
    (place,) = list_rounds(owner, "answers")
    stranger = {"external_id": "x", "fields": {"prompt": [{"role": "user", "content": "p"}], "answer": "a"}}
    owner.put(f"/datasets/{place.dataset_id}/records/bulk", {"items": [stranger]})
    values = {"safe": "safe", "helpfulness": 4, "reasoning": "flawed", "comment": "=1+1"}
    for record in next(owner.records(place.dataset_id)):
        shown = html.unescape(record["fields"]["answer"])
        start = shown.find("😀")  # only characters of one unit stand before it
        spans = [{"label": "wrong", "start": start, "end": start + 2}] if start > 0 else []
        said = {question: {"value": value} for question, value in {**values, "spans_answer": spans}.items()}
        owner.post(f"/records/{record['id']}/responses", {"values": said, "status": "submitted"})
    run(argilla_server, tmp_path, "review", "pull", "--workspace", "answers", "--dataset", name)
    reviews = resolve("reviews", tmp_path)
    assert validate_artifact(reviews) == []
    assert reviews.manifest.outcomes == {"submitted": 2, "draft": 0, "discarded": 0, "records_of_strangers": 1}
    texts = {item.item_id: item.texts["answer"] for item in _items(resolve("trees", tmp_path))}
    for row in reviews.scan().collect().to_dicts():
        answers = json.loads(row["answers"])
        ((start, end),) = answers.pop("spans")
        assert texts[row["item_id"]][start:end] == "😀"
        assert answers == {"safe": "safe", "helpfulness": 4, "reasoning": "flawed"}
        assert (row["item_kind"], row["comment"]) == ("trees", "=1+1")
        assert row["verdict"] is row["safe"] is row["spans"] is row["shown_first"] is None


def _items(artifact: Artifact) -> list[ReviewItem]:
    return list(read_items(artifact, item_ids(artifact)))


def test_a_dataset_belongs_to_one_artifact(argilla_server: RunningServer, tmp_path: Path) -> None:
    for number in (1, 2):
        pairs_of(tmp_path / str(number), number)
    push = ("review", "push", "preference-pairs", "--workspace", "one")
    run(argilla_server, tmp_path / "1", *push)
    said = run(argilla_server, tmp_path / "2", *push, status=1)
    assert "holds something other than preference_pairs@1.0.0" in said
    said = run(argilla_server, tmp_path / "1", *push, "--min-submitted", "3", status=2)
    assert "asks for 1 answers per item" in said
    said = run(argilla_server, tmp_path / "2", "review", "pull", "--workspace", "one", status=1)
    assert "which is not under" in said
    said = run(argilla_server, tmp_path / "1", "review", "status", "--workspace", "nowhere", status=1)
    assert "no review round in the workspace" in said
