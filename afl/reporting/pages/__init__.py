"""Self-contained HTML pages: jinja2 templates filled with figures, matplotlib's SVG and photos."""
