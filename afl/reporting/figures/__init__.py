"""Figures for a paper's column: 3.5 inches wide, 8 point letters, colours that colour-blind readers tell apart.

A figure that shows AFL says that it is a reconstruction. The same input gives the same bytes.
"""
