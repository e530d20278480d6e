"""The measurements of ``python -m scripts.benchmark``, one file for each subject."""
