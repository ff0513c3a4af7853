"""Which recipe learns most in a given time? This course's ``pretrain`` beside five peers, on one machine, in one run.

    python -m benchmarks.pretraining race                # 3 seeds, 120 s each; the settings that the sweep found
    python -m benchmarks.pretraining sweep               # look for each peer's best settings first
    python -m benchmarks.pretraining race --text FOLDER  # another corpus, the same flags

``peers`` builds and trains the contestants, ``trial`` is one of them for so many seconds in a process of its own, and
``report`` makes times and ratios of the curves. What is equal for all: texts, split, tokenizer, the held-out positions
that are scored, threads, and a clock that stands still while the held-out loss is taken and before the first step.
"""
