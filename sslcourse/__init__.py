"""The small package behind the lessons: one module a lesson, read from the ground up.

Floors, lowest first; a module imports only from those before it:

    corpus, tokenizer, masking, loss, floor -> encoder, checkpoint -> recipe, tape -> pretraining -> teaching/ -> cli

Nothing below ``coursekit`` imports Jupyter or a plotting library: the training side runs on a
bare node that has torch, transformers, numpy, accelerate and safetensors.
"""

import os

# A tokenizer that has used threads warns at every later fork; the course's runs are small enough to do without.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"
