"""An Argilla server that `stairdata review serve` runs: its environment, its folder, its processes."""
