"""Reports: records become one self-contained HTML file, Markdown and CSV."""
