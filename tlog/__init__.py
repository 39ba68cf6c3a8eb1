"""Treehead: the pure core of a transparency log that nobody can quietly edit; bytes in, values out."""
