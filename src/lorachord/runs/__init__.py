"""From a recipe to trained, scored and exported adapters in a run folder: what the command line calls."""
