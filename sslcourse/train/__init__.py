"""From rows to a checkpoint: recipe, loop, one step, optimisers, precision, and all of it over many ranks."""
