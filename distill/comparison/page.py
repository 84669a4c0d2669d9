"""The comparison as one HTML page that needs nothing else."""

import base64

from jinja2 import Environment

from distill.comparison.compare import Comparison
from distill.comparison.figure import draw_comparison
from distill.comparison.table import make_notes, make_tables

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --text: #1a1a1a; --page: #ffffff; --line: #c8c8c8; --soft: #f3f3f3; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --page: #000000; --line: #4a4a4a; --soft: #1c1c1c; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.4rem; }
img { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; margin: 2rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 0.5rem; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th[scope=row], thead th:first-child { text-align: left; }
thead th { background: var(--soft); }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<figure>
<picture>
<source media="(prefers-color-scheme: dark)" srcset="{{ dark_figure }}">
<img src="{{ figure }}" alt="Accuracy against the number of images; the first table has its numbers.">
</picture>
</figure>
{% for table in tables %}
<div class="scroll" tabindex="0" role="region" aria-labelledby="table-{{ loop.index }}">
<table>
<caption id="table-{{ loop.index }}">{{ table.caption }}</caption>
<thead>
<tr>{% for cell in table.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for row in table.rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endfor %}
<ul>
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</main>
</body>
</html>
"""


def make_page(comparison: Comparison) -> str:
    """The page, with its figure inside; readable on light and on dark screens."""
    page = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True).from_string(_PAGE)
    return page.render(
        title=f"{len(comparison.rows)} models on {comparison.task}",
        figure=_data_url(draw_comparison(comparison)),
        dark_figure=_data_url(draw_comparison(comparison, is_dark=True)),
        tables=make_tables(comparison),
        notes=make_notes(comparison),
    )


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
