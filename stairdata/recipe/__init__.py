"""The recipe: one YAML file, one section a stage, each key with a default and a meaning.

The sections of the training stages (`sft`, `dpo`, `prm`) belong to `stairdata_training`; `stairdata.stages` joins them
to these. Nothing here reads the environment or touches the network.
"""

from stairdata.recipe.attacks import Attacker, AttacksSection, PairSection, PapSection
from stairdata.recipe.batches import BatchSection
from stairdata.recipe.benchmarks import BenchmarkColumn, BenchmarkSection
from stairdata.recipe.endpoint import ControlTokens, Endpoint, ModelServer
from stairdata.recipe.evaluations import EvaluatedModel, EvaluationsSection
from stairdata.recipe.judges import EvaluationJudge, GuardName, RubricFiles
from stairdata.recipe.loading import load_recipe, packaged_recipe, parse_recipe
from stairdata.recipe.pairs import PairsSection, PreferencePairsSection, PrmPairsSection, ReviewsSection
from stairdata.recipe.prompts import (
    ContaminationSection,
    NearDuplicatesSection,
    PromptColumn,
    PromptSource,
    PromptsSection,
    TaskJudge,
    TwinsSection,
    TwinTeacher,
)
from stairdata.recipe.recipe import Price, Recipe
from stairdata.recipe.responses import BEAM_KEYS, PrmEndpoint, ResponsesSection
from stairdata.recipe.rounds import MEASURES, Measure, RoundsSection, SearchSettings
from stairdata.recipe.section import MOST, Sampling, Section, Share, Task
from stairdata.recipe.structured_cot import (
    CotJudge,
    FromTreesSection,
    GateSection,
    StructuredCotSection,
    Teacher,
    TemplatesSection,
)
from stairdata.recipe.trees import JudgeSection, TreesSection

__all__ = [
    "BEAM_KEYS",
    "MEASURES",
    "MOST",
    "Attacker",
    "AttacksSection",
    "BatchSection",
    "BenchmarkColumn",
    "BenchmarkSection",
    "ContaminationSection",
    "ControlTokens",
    "CotJudge",
    "Endpoint",
    "EvaluatedModel",
    "EvaluationJudge",
    "EvaluationsSection",
    "FromTreesSection",
    "GateSection",
    "GuardName",
    "JudgeSection",
    "Measure",
    "ModelServer",
    "NearDuplicatesSection",
    "PairSection",
    "PairsSection",
    "PapSection",
    "PreferencePairsSection",
    "Price",
    "PrmEndpoint",
    "PrmPairsSection",
    "PromptColumn",
    "PromptSource",
    "PromptsSection",
    "Recipe",
    "ResponsesSection",
    "ReviewsSection",
    "RoundsSection",
    "RubricFiles",
    "Sampling",
    "SearchSettings",
    "Section",
    "Share",
    "StructuredCotSection",
    "Task",
    "TaskJudge",
    "Teacher",
    "TemplatesSection",
    "TreesSection",
    "TwinTeacher",
    "TwinsSection",
    "load_recipe",
    "packaged_recipe",
    "parse_recipe",
]
