"""The HTML report: one file that needs no other, drawn as SVG."""
