"""The commands of ``python -m scripts.report``: a function's docstring is its help, its parameters are its options."""
