"""The server of Treehead: everything of `tlogd` that touches the world."""
