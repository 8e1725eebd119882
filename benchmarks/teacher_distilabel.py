"""distilabel's way of asking a teacher for JSON, for benchmarks/teacher.py: URL COUNT; prints its seconds last."""

from __future__ import annotations

import sys
import time

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def main() -> None:
    """Run the pipeline."""
    url, count = sys.argv[1], int(sys.argv[2])
    rows = [{"instruction": f"Question {number}: {'how do I boil water ' * 20}?"} for number in range(count)]
    with Pipeline(name="teacher") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=256)
        llm = OpenAILLM(
            model="actor",
            base_url=url,
            api_key="none",
            generation_kwargs={
                "temperature": 0.7,
                "max_new_tokens": 1500,
                "response_format": {"type": "json_object"},
            },
        )
        load >> TextGeneration(llm=llm, input_batch_size=256)
    began = time.monotonic()
    distiset = pipeline.run(use_cache=False)
    seconds = time.monotonic() - began
    made = distiset["default"]["train"]
    assert len(made) == count, len(made)
    assert all(made["generation"]), "some answers are missing"
    sys.stdout.write(f"\n{seconds}\n")


if __name__ == "__main__":
    main()
