"""Tables for a terminal of any width."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any


class Frames:
    """A table for a terminal. Columns that do not fit into its width follow in another frame below; no value is shortened.

    Args:
        columns: their names, of one or more lines, without the column of the names of rows.
        rows: a text, or a ``rich`` text, for each column.
        left: columns that are aligned to the left.
        group: number of consecutive columns that stay in one frame if the terminal is wide enough for them.
    """

    def __init__(
        self,
        title: str,
        columns: Sequence[str],
        rows: Mapping[str, Sequence[Any]],
        left: Collection[str] = (),
        group: int = 1,
    ) -> None:
        from rich.text import Text

        self.title, self.columns, self.left, self.group = title, columns, left, group
        self.rows = {
            name: [Text(text) if isinstance(text, str) else text for text in texts]
            for name, texts in rows.items()
        }

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        for start, stop in self._parts(options.max_width):
            title = self.title if start == 0 else f"{self.title} (continued)"
            frame = RichTable(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
            frame.add_column("", no_wrap=True)
            for name in self.columns[start:stop]:
                # A text that is wider than the terminal is wrapped.
                frame.add_column(
                    name,
                    justify="left" if name in self.left else "right",
                    no_wrap=stop - start > 1,
                    overflow="fold",
                )
            for name, texts in self.rows.items():
                frame.add_row(Text(name), *texts[start:stop])
            yield frame

    def _parts(self, width: int) -> list[tuple[int, int]]:
        """The columns of each frame, as (start, stop); each has at least one."""
        between = 3  # characters next to each column
        names = max(map(len, self.rows), default=0) + between + 1
        needed = [
            between + max(len(line) for text in (name, *(row[i].plain for row in self.rows.values())) for line in text.split("\n"))
            for i, name in enumerate(self.columns)
        ]  # fmt: skip
        starts, used = [0], names
        for i, one in enumerate(needed):
            group = sum(needed[i : i + self.group])
            keeps = i % self.group == 0 and names + group <= width
            if used + (group if keeps else one) > width and i > starts[-1]:
                starts.append(i)
                used = names
            used += one
        return list(zip(starts, [*starts[1:], len(needed)], strict=True))
