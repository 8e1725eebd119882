"""Kind `structured_cot`: reasoning in the step grammar, out of trees, written by hand, or by teachers."""

from __future__ import annotations

from stairdata.generators.by_hand import build_from_file
from stairdata.generators.inputs import open_inputs
from stairdata.generators.options import BuildOptions
from stairdata.generators.published_cot import build_published, is_published
from stairdata.generators.sft import build_from_trees, takes_trees
from stairdata.generators.teaching import build_from_teachers
from stairdata.recipe import Recipe
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError


def build_structured_cot(recipe: Recipe, options: BuildOptions) -> Artifact | None:
    """Build a structured_cot artifact from trees, from a hand-written file, or by asking the recipe's teachers.

    Returns:
        The artifact; None where a batch leaves it unfinished.

    Raises:
        InputError: the file can't be read.
        ServerError: a teacher can't be reached.
        UsageError: options that go with teachers alone.
    """
    inputs = open_inputs(options.root, options.inputs)
    from_trees = takes_trees(recipe, inputs)
    published = not from_trees and is_published(recipe)
    if not from_trees and not published and recipe.structured_cot.path is None:
        return build_from_teachers(recipe, options, inputs)
    if options.teachers or options.batch or options.retry_quarantined:
        source = "trees" if from_trees else "a file or a dataset"
        raise UsageError(
            f"--teachers, --batch and --retry-quarantined go with teachers; this recipe takes its rows out of {source}"
        )
    if published:
        return build_published(recipe, options)
    if from_trees:
        return build_from_trees(recipe, options, inputs.of_kind("trees"))
    return build_from_file(recipe, options)
