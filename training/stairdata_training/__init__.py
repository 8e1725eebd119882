"""Training on stairdata's artifacts: SFT, step-level DPO and the process reward model.

Nothing heavy is imported here; `config` needs pydantic alone, the other modules torch, transformers and trl.
"""
