"""What ``python -m scripts.benchmark`` measures, one file for each subject."""
