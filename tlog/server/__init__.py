"""The log server: everything that touches the world. `tlog/DESIGN.md` has the argument for its order of steps."""
