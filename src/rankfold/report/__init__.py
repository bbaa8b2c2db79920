"""PAGES from records: one self-contained HTML file, Markdown and CSV."""
