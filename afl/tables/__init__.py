"""The tables of ``conf/table``: their cells, what they take, how they are trained, and how they compare with the committed ones."""
