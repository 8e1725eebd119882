"""What a process reward model reads of the items that a search asks for."""

from __future__ import annotations

from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.search.scoring import ScoreItem
from stairdata_schemas.errors import quote
from stairdata_schemas.rendering import Tokenizer, step_ids


def unscored_ids(tokenizer: Tokenizer, item: ScoreItem, context: int | None) -> list[list[int]]:
    """Return the token ids up to the end of each step that has no score yet.

    The last step is always among them: an answer that ends by itself behind a step that was scored as a part has
    another score.

    Args:
        tokenizer: of the reward model.
        item: an answer, or the beginning of one.
        context: tokens that the model reads at most, if known.

    Raises:
        RequestFailedError: the answer is longer than that.
    """
    found = step_ids(tokenizer, item.prompt, item.text, is_complete=item.is_complete)
    longest = len(found[-1])
    if context is not None and longest > context:
        detail = (
            f"the prompt {quote(item.prompt)} and an answer to it have {longest} tokens, and the process reward model "
            f"reads {context} at most: give responses.max_tokens, or a model with a longer context"
        )
        raise RequestFailedError([Outcome.INVALID_REQUEST], detail)
    return found[min(item.known, len(found) - 1) :]
