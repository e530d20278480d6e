"""The documents of the project as a website: its pages, and those made from code and tables."""
