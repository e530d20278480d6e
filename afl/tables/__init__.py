"""The tables of ``conf/table``: their runs, their cost, their training, and the comparison with the committed tables."""
