"""The files of the front page: HTML, style and script."""
