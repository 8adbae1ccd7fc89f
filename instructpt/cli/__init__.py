"""The command line: argument -> call -> render."""
