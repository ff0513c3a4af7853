"""Stands before the real pip on PYTHONPATH while .ci/run tests, so that `python -m pip` and `import pip` fail too."""

raise SystemExit("pip was called after the installation: everything that the tests need belongs in pyproject.toml")
